"""The material of tests/data/scorers, and each checkpoint of it made once a session."""

import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "data" / "scorers"
sys.path.append(str(DATA))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A file of open_clip's layout with random weights, of a configuration in open_clip's format."""
    from scorer_material import clip_layout, save

    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(config):
        key = str(config)
        if key not in made:
            made[key] = save(clip_layout(config), folder / f"{len(made)}.pt")
        return str(made[key])

    return make
