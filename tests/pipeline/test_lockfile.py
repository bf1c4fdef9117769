from importlib import metadata

import pytest

from jobs.__main__ import main
from pipeline import lockfile

TORCH = metadata.version("torch").partition("+")[0]


@pytest.fixture
def lock(tmp_path, monkeypatch):
    def write(*lines):
        (tmp_path / "requirements.lock").write_text("\n".join(lines))

    monkeypatch.setattr(lockfile, "LOCK", tmp_path / "requirements.lock")
    return write


@pytest.mark.parametrize(
    ("lines", "differences"),
    [
        ([f"torch=={TORCH}", "no-such-package==1"], []),
        (["numpy==0.1", f"torch=={TORCH}"], [f"numpy is {metadata.version('numpy')}, not 0.1"]),
        (["ray==1; sys_platform == 'linux'"], [f"ray is {metadata.version('ray')}, not 1"]),
    ],
)
def test_installed_versions_are_compared_with_the_lock(lock, lines, differences):
    lock(*lines)
    assert lockfile.find_version_differences(lockfile.LOCK) == differences


def test_a_submitted_job_with_other_versions_is_rejected(lock, tmp_path, monkeypatch, capsys):
    lock("numpy==0.1", "ray==0.1", "torch==0.1", "pillow==0.1")
    monkeypatch.setenv(lockfile.PINNED, "1")
    assert main(["prepare", "--run", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert f"numpy is {metadata.version('numpy')}, not 0.1" in err
    assert "and 1 more; expected the versions of requirements.lock" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_local_command_is_not_checked_against_the_lock(lock, monkeypatch):
    lock("numpy==0.1")
    monkeypatch.delenv(lockfile.PINNED, raising=False)
    lockfile.check_versions()
    monkeypatch.setenv(lockfile.PINNED, "")  # as --ignore-lock leaves it
    lockfile.check_versions()
