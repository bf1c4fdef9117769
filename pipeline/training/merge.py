"""Two students of one form as one: a weighted mean of their weights, as SwiftBrush v2 merges its two."""

import tempfile
from pathlib import Path

from pipeline import models
from pipeline.errors import UserError
from pipeline.storage import Folder


def merge(first: str, second: str, weight: float, target: Folder) -> str:
    """Write (1 - weight) first + weight second as a diffusers folder; returns its hash.

    Section 4.3 of arXiv 2408.14176: 0.5 of a student trained whole without the CLIP loss and 0.5 of a LoRA student
    trained with it. All but the denoiser is the first's.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"--weight: {weight} is not allowed; allowed: 0 to 1")
    if target.has("model_index.json"):
        raise UserError(f"--out: {target.uri} holds a model already; allowed: another folder")
    folders = [models.teacher_folder(place, field) for place, field in ((first, "first"), (second, "second"))]
    weights, others = (models.load_denoiser(folder, "second").state_dict() for folder in folders)
    for name, value in weights.items():
        if name not in others or others[name].shape != value.shape:
            raise UserError(
                f"second: {second!r} has no {name} of shape {tuple(value.shape)}; allowed: the first's form"
            )
        value.lerp_(others[name], weight)
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged"
        folder_hash = models.save_denoiser(folders[0], weights, merged)
        target.upload(merged)
    return folder_hash
