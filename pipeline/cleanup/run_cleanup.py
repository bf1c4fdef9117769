"""Search of a run's folder for what is no longer needed.

Only what can be made again, or is never read again, is removable: checkpoints of a finished distillation, the pieces of
earlier evaluations, and copies of versions that MLflow still has. Students, manifests, reports and prompts are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import manifest
from pipeline.compat import CHECKPOINT_PREFIX
from pipeline.errors import invalid
from pipeline.evaluation.evaluate import EvaluationManifest
from pipeline.evaluation.image_store import IMAGES
from pipeline.evaluation.results import SCORES as SCORES_FILE
from pipeline.evaluation.worker import SCORES
from pipeline.manifest import DistilledManifest
from pipeline.storage import Folder
from pipeline.training.checkpoint_validation import VERSIONS
from pipeline.training.driver import TRAIN_NAME


@dataclass(frozen=True)
class Removable:
    """A folder, or one file of it, that is no longer needed; why, and its size in bytes."""

    folder: Folder
    file: str
    reason: str
    size: int

    @property
    def uri(self) -> str:
        """The path of the file or folder."""
        return f"{self.folder.uri}/{self.file}" if self.file else self.folder.uri

    def remove(self) -> None:
        """Delete the file, or the folder with everything below it."""
        if self.file:
            self.folder.remove(self.file)
        else:
            self.folder.delete()


def find_in_run(run: Folder) -> list[Removable]:
    """Return what a run's folder no longer needs.

    Raises:
        UserError: if the folder is no run's, or a manifest is corrupt.
    """
    _require_run(run)
    distilled = run / "distilled"
    evaluations = [run / "evaluation"]
    evaluations += [distilled / VERSIONS / name / "evaluation" for name in (distilled / VERSIONS).list_dirs()]
    pieces = [piece for evaluation in evaluations for piece in _iter_old_pieces(evaluation)]
    return [*_iter_checkpoints(distilled), *pieces]


def clean(run: Folder) -> str:
    """Remove what the run's folder no longer needs; return what was removed in one line."""
    found = find_in_run(run)
    for entry in found:
        entry.remove()
    size = format_size(sum(entry.size for entry in found))
    return f"removed {len(found)} files and folders that are no longer needed, {size}"


def format_size(size: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{size / 2**20:,.1f} MiB"


def measure(folder: Folder) -> int:
    """Return the bytes of all files below a folder."""
    return sum(int(entry.size) for entry in folder.walk())


def _require_run(run: Folder) -> None:
    parts = (
        (run / "distilled", manifest.RUN_FILE),
        (run / "distilled", manifest.NAME),
        (run / "evaluation", manifest.NAME),
    )
    if not any(folder.exists(name) for folder, name in parts):
        raise invalid("--run", run.uri, f"the folder of a run, with distilled/{manifest.RUN_FILE}")


def _iter_checkpoints(distilled: Folder) -> Iterator[Removable]:
    """Yield the checkpoints of a finished distillation, whose manifest is written after the exported student."""
    if not distilled.exists(manifest.NAME):
        return
    manifest.read(distilled, DistilledManifest)
    train = distilled / TRAIN_NAME
    for name in train.list_dirs():
        if name.startswith(CHECKPOINT_PREFIX) and not _is_link(train / name):
            yield Removable(train / name, "", "checkpoint of a finished run", measure(train / name))


def _iter_old_pieces(evaluation: Folder) -> Iterator[Removable]:
    """Yield images and scores that no row of a finished evaluation names; an unfinished one resumes from its pieces."""
    if not evaluation.exists(manifest.NAME):
        return
    manifest.read(evaluation, EvaluationManifest)
    used = set(evaluation.read_table(SCORES_FILE, columns=["images"])["images"].to_pylist())
    for folder in (evaluation / IMAGES, evaluation / SCORES):
        for name in folder.list_files():
            if name.endswith(".parquet") and name.removesuffix(".parquet").partition("-")[0] not in used:
                yield Removable(folder, name, "piece of an earlier evaluation", folder.get_size(name) or 0)


def _is_link(folder: Folder) -> bool:
    return folder.is_local and Path(folder.path).is_symlink()
