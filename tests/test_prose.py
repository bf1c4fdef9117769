"""Docstrings are sentences: none begins with a preposition or a relative clause."""

import ast

import pytest

from pipeline import ROOT

PACKAGES = ("nasa", "datasets_prep", "pipeline", "jobs", "benchmarks", "integrations", "tests")
_WORDS = (
    "about above after among as at before beside between beyond by during for from in into of on over since through to "
    "under until upon what when where which while who whoever whose with within without"
)
FORBIDDEN = frozenset(_WORDS.split())


def find_docstrings(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (text := ast.get_docstring(node)):
                yield f"{file.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_with_a_preposition(package):
    all_docstrings = list(find_docstrings(package))
    assert len(all_docstrings) > 9
    offending = [
        f"{location}: {text.splitlines()[0]}"
        for location, text in all_docstrings
        if text.split()[0].lower() in FORBIDDEN
    ]
    assert not offending, "\n".join(offending)
