"""The documentation site: `make docs` accepts every page and link, and shows the pages as GitHub does."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import nasa

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("hooks", ROOT / "docs/site/hooks.py")
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)
ROOT_PAGES = [name for name in hooks.PAGES if name.endswith(".md")]
PAGES = [*ROOT_PAGES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
LOADED = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"')


def build(root, site):
    command = ["make", "docs", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", f"SITE={site}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT, folder)
    assert result.returncode == 0, result.stderr
    return folder


def read_article(site, page):
    """Return the HTML of a page's text, without the links beside its headings."""
    html = (site / page.replace(".md", ".html")).read_text()
    article = re.search(r"<article[^>]*>(.*?)</article>", html, re.DOTALL)[1]
    return re.sub(r'<a class="headerlink".*?</a>|<aside.*?</aside>', "", article, flags=re.DOTALL)


def test_the_public_names_are_in_the_reference(site):
    html = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    names = set(nasa.__all__) - {"__version__", "PRESETS", "nasa_rule"}
    expected = {f"nasa.{name}" for name in names} | {"nasa.presets.PRESETS", "nasa.attention_rules.nasa_rule"}
    assert expected <= set(re.findall(r'\sid="([\w.]+)"', html))


def test_nothing_is_loaded_from_another_host(site):
    pages = list(site.rglob("*.html"))
    loaded = {url for page in pages for pair in LOADED.findall(page.read_text()) for url in pair if url}
    assert len(pages) > 50
    assert len(loaded) > 20
    assert not [url for url in loaded if re.match(r"(?:[a-z]+:)?//", url)]


@pytest.mark.parametrize("source", [page for page in PAGES if not page.startswith("docs/api/")])
def test_lists_and_tables_are_those_of_github(site, source):
    """Python-Markdown needs four spaces and a blank line where CommonMark does not."""
    tags = re.compile(r"<(ol|ul|li|tr|pre|img|h[1-6])\b")
    expected = Counter(tags.findall(MarkdownIt("commonmark").enable("table").render((ROOT / source).read_text())))
    page = hooks.PAGES.get(source) or source.removeprefix("docs/")
    assert Counter(tags.findall(read_article(site, page))) == expected


def test_the_notebook_is_a_page(site):
    article = read_article(site, "steer.md")
    pictures = re.findall(r'<img[^>]*src="([^"]+)"', article)
    assert len(pictures) > 3
    assert all((site / picture).read_bytes()[:3] == b"\xff\xd8\xff" for picture in pictures)
    assert "<pre" in article


def test_a_broken_link_ends_the_build(tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", root / "docs")
    shutil.copytree(ROOT / "nasa", root / "nasa")
    for name in ("Makefile", *ROOT_PAGES):
        shutil.copy(ROOT / name, root)
    (root / "docs/unlisted.md").write_text("# Unlisted\n\n[1](gone.md) [2](registry.md#gone) [3](../pyproject.toml)\n")
    result = build(root, tmp_path / "site")
    assert result.returncode == 2, "make's, after a failed command"
    for complaint in (
        'not included in the "nav" configuration:\n  - unlisted.md',
        "'unlisted.md' contains a link 'gone.md'",
        "'unlisted.md' contains a link 'registry.md#gone', but the doc 'registry.md' does not contain an anchor",
        "'unlisted.md' contains a link '../pyproject.toml'",
    ):
        assert complaint in result.stderr


@pytest.mark.parametrize(
    ("link", "source", "page", "moved"),
    [
        ("docs/registry.md#a", "README.md", "index.md", "registry.md#a"),
        ("SECURITY.md", "README.md", "index.md", "SECURITY.md"),
        ("../README.md#a", "docs/cluster.md", "cluster.md", "index.md#a"),
        ("../../README.md", "docs/adr/0001-layers.md", "adr/0001-layers.md", "../index.md"),
        ("../registry.md", "docs/adr/0001-layers.md", "adr/0001-layers.md", "../registry.md"),
        ("steer.ipynb", "docs/gallery.md", "gallery.md", "steer.md"),
        ("images/page.png", "docs/gallery.md", "gallery.md", "images/page.png"),
        ("https://arxiv.org/abs/2412.02687", "README.md", "index.md", "https://arxiv.org/abs/2412.02687"),
        ("#a", "README.md", "index.md", "#a"),
    ],
)
def test_a_link_of_the_repository_leads_to_the_page_of_the_site(link, source, page, moved):
    assert hooks.move_links(f"[text]({link}), [x]({link})", source, page) == f"[text]({moved}), [x]({moved})"
