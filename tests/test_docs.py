"""The commands that the docs give are commands that there are."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.__main__ import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "cluster.yaml"]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page):
    """Of `python -m jobs`, in code blocks and within lines; continued lines are joined."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".yaml":
        lines = [line.lstrip("# ") for line in text.splitlines()]
    else:
        lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
        lines += re.findall(r"`(python -m jobs [^`]+)`", FENCE.sub("", text))
    found = [line.strip() for line in lines if line.strip().startswith("python -m jobs ")]
    return [line for line in found if "..." not in line and "<" not in line]


FOUND = [(page, line) for page in PAGES for line in commands(page)]


def test_there_are_commands_in_the_docs():
    assert len(FOUND) > 40
    assert {page.name for page, _ in FOUND} >= {
        "README.md",
        "cluster.md",
        "runbook.md",
        "evaluation.md",
        "cluster.yaml",
    }


@pytest.mark.parametrize(("page", "line"), FOUND, ids=[f"{page.name}: {line[15:60]}" for page, line in FOUND])
def test_every_command_in_the_docs_parses(page, line, capsys):
    words = shlex.split(line.partition(" > ")[0], comments=True)[3:]
    if len(words) == 1:  # a command that is named, not given
        words.append("--help")
    try:
        make_parser().parse_args(words)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{page.name}: {line}\n{capsys.readouterr().err}")
