"""The check that a submitted job runs with the package versions of `requirements.lock`."""

import os
import re
from importlib import metadata
from pathlib import Path

from pipeline import ROOT
from pipeline.errors import UserError

LOCK = ROOT / "requirements.lock"
PINNED = "NASA_DISTILL_PINNED"  # set in a submitted job unless --ignore-lock is given
MAX_SHOWN = 3


def check_versions() -> None:
    """Raise a UserError in a submitted job's process whose node has other versions than the lock."""
    if os.environ.get(PINNED) and (wrong := find_version_differences(LOCK)):
        more = f" and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        raise UserError(
            f"environment: on this machine {', '.join(wrong[:MAX_SHOWN])}{more}; expected the versions of {LOCK.name}, "
            "installed on every node, or `submit --ignore-lock`"
        )


def find_version_differences(lock: Path) -> list[str]:
    """Return the installed packages whose version differs from the lock; a local part, as in 2.13.0+cu130, is ignored.

    Packages that are not installed are ignored: a node needs no linters.
    """
    wrong = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, _, pinned = line.partition(";")[0].strip().partition("==")
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if re.sub(r"\+.*", "", installed) != pinned:
            wrong.append(f"{name} is {installed}, not {pinned}")
    return wrong
