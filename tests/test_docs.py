"""Every command in the docs is accepted by the parser."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.__main__ import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "cluster.yaml"]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def find_commands(page):
    """Return the `python -m jobs` commands in code blocks and within lines; continued lines are joined."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".yaml":
        lines = [line.lstrip("# ") for line in text.splitlines()]
    else:
        lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
        lines += re.findall(r"`(python -m jobs [^`]+)`", FENCE.sub("", text))
    candidates = [line.strip() for line in lines if line.strip().startswith("python -m jobs ")]
    return [line for line in candidates if "..." not in line and "<" not in line]


COMMANDS = [(page, line) for page in PAGES for line in find_commands(page)]


def test_there_are_commands_in_the_docs():
    assert len(COMMANDS) > 40
    assert {page.name for page, _ in COMMANDS} >= {
        "README.md",
        "cluster.md",
        "runbook.md",
        "evaluation.md",
        "cluster.yaml",
    }


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.name}: {line[15:60]}" for page, line in COMMANDS])
def test_every_command_in_the_docs_parses(page, line, capsys):
    words = shlex.split(line.partition(" > ")[0], comments=True)[3:]
    if len(words) == 1:  # a command that is only mentioned
        words.append("--help")
    try:
        make_parser().parse_args(words)
    except SystemExit as exit_error:
        if exit_error.code:
            pytest.fail(f"{page.name}: {line}\n{capsys.readouterr().err}")
