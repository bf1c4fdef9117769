"""The notebook of the docs runs from top to bottom in a kernel, and its student is steered."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.integration

NOTEBOOK = Path(__file__).parents[1] / "docs/steer.ipynb"
STEPS = re.compile(r"^STEPS = \d+$", re.MULTILINE)
MAX_BYTES = 400_000
COUNTS = re.compile(r"^(.+?) +removed +(\d+) of (\d+) +kept +(\d+) of", re.MULTILINE)


def execute(steps=None):
    """Return what the notebook prints, and its number of images; `steps` replaces the number of training steps."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if steps:
        (cell,) = (cell for cell in notebook.cells if STEPS.search(cell.source))
        cell.source = STEPS.sub(f"STEPS = {steps}", cell.source)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    return read_outputs(notebook)


def read_outputs(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return printed, sum("image/jpeg" in output.get("data", {}) for output in outputs)


def check_steering(printed, pictures):
    rows = {label: tuple(map(int, counts)) for label, *counts in COUNTS.findall(printed)}
    removed, affected, kept = rows["scale 0.5"]
    assert pictures == 4
    assert rows["scale 0"][0] == 0, "scale 0 is the plain image"
    assert affected >= 6
    assert removed >= 0.8 * affected
    assert kept >= 0.5 * affected
    assert rows["CFG 2"][0] < removed, "guidance in one step removes less"
    (unchanged,) = re.findall(r"None +pixels moved by ([\d.]+)", printed)
    assert float(unchanged) == 0


def test_the_saved_notebook_was_run_from_top_to_bottom():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    check_steering(*read_outputs(notebook))


def test_the_notebook_runs_with_a_student_of_two_steps():
    printed, pictures = execute(steps=2)
    assert pictures == 4
    assert "scale 0 " in printed


@pytest.mark.slow
def test_the_notebook_steers_its_student():
    check_steering(*execute())
