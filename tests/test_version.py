"""The package has one version, and the changelog begins with it."""

import re
from pathlib import Path

import nasa

HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$")
TEXT = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
HEADINGS = [line for line in TEXT.splitlines() if line.startswith("## ")]


def test_the_changelog_begins_with_the_version():
    """`pyproject.toml` reads the version from `nasa/version.py`; tests/test_wheel.py checks the wheel's."""
    assert HEADING.match(HEADINGS[0])[1] == nasa.__version__


def test_versions_descend_and_only_the_first_may_be_unreleased():
    parsed = [HEADING.match(line) for line in HEADINGS]
    assert all(parsed), HEADINGS
    versions = [tuple(map(int, match[1].split("."))) for match in parsed]
    assert versions == sorted(set(versions), reverse=True)
    assert all(match[2] != "unreleased" for match in parsed[1:])
