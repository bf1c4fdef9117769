import os
import subprocess

import pytest
from ray._private import ray_constants

from pipeline.cluster.working_dir import MAX_BYTES, RECIPE_FILE, list_tracked_files, pack
from pipeline.errors import UserError


def test_the_size_limit_is_below_that_of_the_job_server():
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


def test_tracked_files_are_packed_as_they_are_now(checkout, tmp_path):
    (checkout / "nasa/a.py").write_text("changed since")
    total = pack(tmp_path / "out", "recipe = 1", checkout)
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"nasa/a.py", "big.bin", ".gitignore", RECIPE_FILE}
    assert (tmp_path / "out/nasa/a.py").read_text() == "changed since"
    assert total == sum((checkout / name).stat().st_size for name in files - {RECIPE_FILE})


def test_deleted_files_and_links_are_not_packed(checkout):
    os.symlink("/etc/passwd", checkout / "link")
    subprocess.run(["git", "add", "link"], cwd=checkout, check=True)
    (checkout / "big.bin").unlink()
    assert list_tracked_files(checkout) == [".gitignore", "nasa/a.py"]


def test_an_oversized_package_is_reported_before_copying(checkout, tmp_path):
    with pytest.raises(
        UserError, match=r"package: what git tracks is 0\.0 MiB, big\.bin alone 0\.0; expected at most 0 MiB"
    ):
        pack(tmp_path / "out", root=checkout, largest=1000)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_git_is_reported(tmp_path):
    with pytest.raises(UserError, match="expected a git clone"):
        pack(tmp_path / "out", root=tmp_path)
