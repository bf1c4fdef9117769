"""Shared by all tests: quiet libraries, one thread, a home of its own, one Ray session, one tiny teacher."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HOME"] = os.environ.get("NASA_TEST_HOME") or tempfile.mkdtemp(prefix="nasa-home-")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu")
os.environ.setdefault(
    "TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")
)  # compiled once per environment

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """A folder in Stable Diffusion's layout with random weights."""
    from nasa.testing import tiny_stable_diffusion

    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray for the whole test session."""
    import ray

    from pipeline.session import ray_session

    with ray_session():
        yield ray
