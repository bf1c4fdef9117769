"""Merging of two students of one architecture: a weighted mean of their weights, as in SwiftBrush v2."""

import json
import tempfile
from pathlib import Path

from pydantic import JsonValue

from pipeline import models
from pipeline.errors import UserError, invalid
from pipeline.storage import Folder

OUTPUT_FIELDS = {  # configuration fields that define what a student's output means
    ".": ("start_timestep",),
    "scheduler": (
        *("_class_name", "prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
        *("trained_betas", "rescale_betas_zero_snr", "original_inference_steps"),
    ),
    "vae": ("_class_name", "latent_channels", "scaling_factor", "shift_factor"),
    "text_encoder": ("architectures", "hidden_size", "num_hidden_layers", "d_model", "num_layers"),
}


def merge(first: str, second: str, weight: float, target: Folder) -> str:
    """Write (1 - weight) first + weight second as a diffusers folder; returns its hash.

    Section 4.3 of arXiv 2408.14176 takes 0.5 of a fully trained student without the CLIP loss, and 0.5 of a LoRA
    student with it. All parts but the denoiser come from the first.
    """
    if not 0 <= weight <= 1:
        raise invalid("--weight", weight, "0 to 1")
    if target.exists("model_index.json"):
        raise invalid("--out", target.uri, "a folder without a model")
    folders = models.find_teacher_folder(first, "first"), models.find_teacher_folder(second, "second")
    require_same_output(*folders, second)
    weights, second_weights = (models.load_denoiser(folder, "second").state_dict() for folder in folders)
    for name, value in weights.items():
        if name not in second_weights or second_weights[name].shape != value.shape:
            raise UserError(
                f"second: got {second!r} without {name} of shape {tuple(value.shape)}; "
                "expected the first's architecture."
            )
        value.lerp_(second_weights[name], weight)
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged"
        folder_hash = models.save_denoiser(folders[0], weights, merged)
        target.upload(merged)
    return folder_hash


def require_same_output(first: Path, second_folder: Path, second: str) -> None:
    """Reject two students whose outputs have different meanings, since their mean is meaningless.

    Raises:
        UserError: naming what differs, with both values.
    """
    for part, names in OUTPUT_FIELDS.items():
        first_config, second_config = (_read_configuration(folder / part) for folder in (first, second_folder))
        for name in names:
            if first_config.get(name) != second_config.get(name):
                raise UserError(
                    f"second: {second!r} has {_describe_part(part, name)} = {second_config.get(name)!r}; "
                    f"the first has {first_config.get(name)!r}. "
                    "Merge students that predict the same thing from the same start."
                )


def _describe_part(part: str, name: str) -> str:
    return name if part == "." else f"{part}.{name}"


def _read_configuration(folder: Path) -> dict[str, JsonValue]:
    for name in ("scheduler_config.json", "config.json", models.STUDENT_FILE):
        if (folder / name).is_file():
            return dict(json.loads((folder / name).read_text()))
    return {}
