"""Coverage-guided fuzzing of each kind of file for a minute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

pytest.importorskip("atheris")
TARGETS = ["recipe", "manifest", "lines", "parquet", "checkpoint"]
SECONDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_reader(target, tmp_path):
    script = Path(__file__).with_name("atheris_targets.py")
    command = [sys.executable, str(script), target, f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=20"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
