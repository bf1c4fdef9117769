import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from pipeline import ROOT
from pipeline.training.deepspeed_engine import prepare_deepspeed


def test_deepspeed_is_compiled_by_the_ninja_of_this_environment(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for _ in range(2):
        prepare_deepspeed()
    assert os.environ["PATH"] == f"{sysconfig.get_path('scripts')}:/usr/bin:/bin"


def test_a_stale_compilation_lock_is_removed(tmp_path):
    """torch leaves its lock behind if a process is killed while it compiles."""
    extensions = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    if extensions.is_dir():
        shutil.copytree(extensions, tmp_path, dirs_exist_ok=True)
    lock = tmp_path / "deepspeed_shm_comm/lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("")
    code = "from pipeline.training.deepspeed_engine import *; prepare_deepspeed(); compile_communication_op()"
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=300)
    assert not lock.exists()
    assert (lock.parent / "deepspeed_shm_comm.so").is_file()
