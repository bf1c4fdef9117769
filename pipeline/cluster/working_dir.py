"""The working directory of a submitted job: the files that git tracks, and the resolved recipe."""

import shutil
import subprocess
from pathlib import Path

from pipeline import ROOT
from pipeline.errors import UserError

RECIPE_FILE = "submitted.toml"
MAX_BYTES = 95 * 2**20  # bytes: Ray's job server takes requests of 100 MiB


def pack(target: Path, recipe_toml: str | None = None, root: Path = ROOT, largest: int = MAX_BYTES) -> int:
    """Copy what git tracks under `root` into the folder `target`; returns its bytes.

    Raises:
        UserError: outside a git checkout, or if it is too large; then nothing was copied.
    """
    files = list_tracked_files(root)
    sizes = {file: (root / file).stat().st_size for file in files}
    total = sum(sizes.values())
    if total > largest:
        worst = max(sizes, key=lambda file: sizes[file])
        raise UserError(
            f"package: what git tracks is {total / 2**20:.1f} MiB, {worst} alone {sizes[worst] / 2**20:.1f}; "
            f"expected at most {largest / 2**20:.0f} MiB."
        )
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, target / file)
    if recipe_toml is not None:
        (target / RECIPE_FILE).write_text(recipe_toml, encoding="utf-8")
    return total


def list_tracked_files(root: Path) -> list[str]:
    """Return tracked files that exist, without links, whose targets may lie outside the checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--recurse-submodules"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        raise UserError(f"package: got {str(root)!r}; expected a git clone, whose tracked files are sent.") from None
    names = [name for name in listed.split("\0") if name]
    return [name for name in names if (root / name).is_file() and not (root / name).is_symlink()]
