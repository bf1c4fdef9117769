"""Extraction of a LoRA from a fully trained student, into a folder with the scheduler that the student needs."""

import shutil
import tempfile
from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from nasa.lora_extraction import ExtractedLora, extract_lora, list_lora_layers
from pipeline import models
from pipeline.errors import UserError, invalid
from pipeline.hashing import hash_folder
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

RECORD_FILE = "lora_extraction.json"


class ExtractionRecord(StrictModel):
    """The origin of an extracted LoRA, and the errors that it leaves, relative and in the Frobenius norm.

    Attributes:
        rank: the largest rank of an adapter.
        student_sha256: the student's folder's hash.
        teacher_sha256: the teacher's folder's hash.
        relative_error: the error of all layers together.
        worst_layer: the layer with the largest error.
        worst_error: its error.
        omitted_share: the share of the difference in parameters that no LoRA holds: biases, norms and tables.
        total_relative_error: the error with these parameters.
        layers: the error of each layer.
    """

    rank: PositiveInt
    student_sha256: str
    teacher_sha256: str
    relative_error: NonNegativeFloat
    worst_layer: str
    worst_error: NonNegativeFloat
    omitted_share: NonNegativeFloat
    total_relative_error: NonNegativeFloat
    layers: dict[str, NonNegativeFloat]


def extract(student: str, teacher: str, rank: int, target: Folder) -> ExtractionRecord:
    """Write the LoRA that makes a teacher the student, as nearly as its rank allows; return its errors."""
    if rank < 1:
        raise invalid("--rank", rank, "1 or more")
    if target.list_files() or target.list_dirs():
        raise invalid("--out", target.uri, "an empty or a new folder")
    folders = models.find_teacher_folder(student, "student"), models.find_teacher_folder(teacher, "teacher")
    student_denoiser = models.load_denoiser(folders[0], "student")
    weights, base = student_denoiser.state_dict(), models.load_denoiser(folders[1], "teacher").state_dict()
    _require_same_architecture(weights, base, teacher)
    try:
        extracted = extract_lora(weights, base, rank, list_lora_layers(student_denoiser))
    except ValueError as error:
        raise UserError(f"student: {error}") from None
    if not extracted.weights:
        raise invalid("student", student, "another one than the teacher: no layer differs")
    record = _build_record(extracted, rank, *folders)
    _write(extracted, record, folders[0], target)
    return record


def _require_same_architecture(student: dict[str, Tensor], teacher: dict[str, Tensor], name: str) -> None:
    for weight, value in student.items():
        if weight not in teacher or teacher[weight].shape != value.shape:
            raise invalid("teacher", name, f"the student's architecture, with {weight} of shape {tuple(value.shape)}")


def _build_record(extracted: ExtractedLora, rank: int, student: Path, teacher: Path) -> ExtractionRecord:
    errors = {name: fit.relative_error for name, fit in extracted.layers.items()}
    return ExtractionRecord(
        rank=rank,
        student_sha256=hash_folder(student),
        teacher_sha256=hash_folder(teacher),
        relative_error=extracted.relative_error,
        worst_layer=extracted.worst_layer,
        worst_error=errors[extracted.worst_layer],
        omitted_share=extracted.omitted_share,
        total_relative_error=extracted.total_relative_error,
        layers=errors,
    )


def _write(extracted: ExtractedLora, record: ExtractionRecord, student: Path, target: Folder) -> None:
    """Write the LoRA's files, the student's scheduler and the record, all at once."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "lora"
        shutil.copytree(student / "scheduler", folder / "scheduler")
        models.save_lora(folder, models.detect_family(student).denoiser_part, extracted.weights)
        (folder / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n")
        if (student / models.STUDENT_FILE).is_file():
            shutil.copy(student / models.STUDENT_FILE, folder)
        target.upload(folder)
