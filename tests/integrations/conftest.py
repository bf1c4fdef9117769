"""Path to the fake ComfyUI and its contract, the node itself, and small pipelines that ComfyUI's networks can hold."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data/comfyui"
NODE = ROOT / "integrations/comfyui/nasa_negative_prompt"
sys.path.append(str(DATA))


@pytest.fixture(scope="session")
def node():
    """Return the node's module, imported as ComfyUI does: from its folder, by no installed name."""
    spec = importlib.util.spec_from_file_location("nasa_negative_prompt", NODE / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)
    return sys.modules["nasa_negative_prompt.node"]
