import os
import subprocess

import pytest
from ray._private import ray_constants

from pipeline.cluster.working_dir import MAX_BYTES, RECIPE_FILE, list_tracked_files, pack
from pipeline.errors import UserError


def test_the_job_server_takes_what_may_be_packed():
    assert MAX_BYTES < ray_constants.DASHBOARD_CLIENT_MAX_SIZE


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "nasa").mkdir(parents=True)
    for name, text in {"nasa/a.py": "one", "big.bin": "x" * 1000, "ignored.txt": "no", ".env": "secret"}.items():
        (root / name).write_text(text)
    (root / ".gitignore").write_text("ignored.txt\nbig.bin\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "-f", "nasa/a.py", "big.bin", ".gitignore"], cwd=root, check=True)
    return root


def test_what_git_tracks_goes_along_as_it_is_now(checkout, tmp_path):
    (checkout / "nasa/a.py").write_text("changed since")
    total = pack(tmp_path / "out", "recipe = 1", checkout)
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"nasa/a.py", "big.bin", ".gitignore", RECIPE_FILE}
    assert (tmp_path / "out/nasa/a.py").read_text() == "changed since"
    assert total == sum((checkout / name).stat().st_size for name in files - {RECIPE_FILE})


def test_what_was_deleted_and_links_stay_here(checkout):
    os.symlink("/etc/passwd", checkout / "link")
    subprocess.run(["git", "add", "link"], cwd=checkout, check=True)
    (checkout / "big.bin").unlink()
    assert list_tracked_files(checkout) == [".gitignore", "nasa/a.py"]


def test_too_large_is_said_before_anything_is_copied(checkout, tmp_path):
    with pytest.raises(
        UserError, match=r"package: what git tracks is 0\.0 MiB, big\.bin alone 0\.0; expected at most 0 MiB"
    ):
        pack(tmp_path / "out", root=checkout, largest=1000)
    assert not (tmp_path / "out").exists()


def test_without_git_it_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected a git clone"):
        pack(tmp_path / "out", root=tmp_path)
