"""MkDocs hooks: the pages of the repository's root and the notebook become pages of the site.

Links are written for the repository, as GitHub shows it: a page in `docs` links to `../README.md`, the README to
`docs/registry.md`. They are rewritten to the site's pages; what they cannot reach, a strict build rejects.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
NOTEBOOK = "docs/steer.ipynb"
PAGES = {  # file in the repository: page of the site; a file in docs is a page of the same name
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    NOTEBOOK: "steer.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
RELATIVE_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])[^)#\s]+")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in `docs`, and the notebook's images."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == NOTEBOOK:
            text, images = render_notebook(json.loads(text), "steer")
            for name, content in images.items():
                files.append(File.generated(config, name, content=content))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    return move_links(markdown, SOURCES.get(uri, f"docs/{uri}"), uri)


def move_links(markdown: str, source: str, page: str) -> str:
    """Return a file's Markdown with its links as they are from a page of the site."""

    def move(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[0]))
        return posixpath.relpath(PAGES.get(target) or posixpath.relpath(target, "docs"), posixpath.dirname(page) or ".")

    return RELATIVE_LINK.sub(move, markdown)


def render_notebook(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its images by their path in the site."""
    parts, images = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/jpeg" in data:
                path = f"images/{name}-{len(images)}.jpg"
                images[path] = base64.b64decode(data["image/jpeg"])
                parts.append(f"![Images of the cell above]({path})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            else:
                parts.append(f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts), images
