"""The wheel is the library alone."""

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nasa

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


def read_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def test_the_wheel_holds_only_the_whole_of_nasa(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "nasa", source / "nasa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("nasa_distill-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nasa").rglob("*.py")}
    assert names == expected | {"nasa/py.typed"}
    metadata = email.message_from_bytes(read_metadata(wheel))
    assert (metadata["Name"], metadata["Version"]) == ("nasa-distill", nasa.__version__)
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.split(">")[0] for line in required} == {"torch", "diffusers", "transformers", "peft"}
    code = "import nasa, sys; nasa.steer, nasa.PRESETS, nasa.NasaGuidance; print(nasa.__file__, 'ray' in sys.modules)"
    environment = {"PYTHONPATH": str(wheel), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.stdout.startswith(str(wheel)), result.stderr
    assert result.stdout.endswith("False\n")
