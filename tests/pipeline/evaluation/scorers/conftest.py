"""The material of tests/data/scorers, with each checkpoint written once per session."""

import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "data" / "scorers"
sys.path.append(str(DATA))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return a function that writes open_clip's checkpoint of a configuration, with random weights."""
    from scorer_material import build_clip_layout, save_checkpoint

    folder, files = tmp_path_factory.mktemp("checkpoints"), {}

    def write(config):
        key = str(config)
        if key not in files:
            files[key] = save_checkpoint(build_clip_layout(config), folder / f"{len(files)}.pt")
        return str(files[key])

    return write
