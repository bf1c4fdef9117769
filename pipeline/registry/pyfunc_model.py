"""A registered student as an MLflow model: a table of prompts in, PNG images, or animated ones of videos, out.

MLflow keeps this file beside the student and runs it when the version is loaded; it needs torch, diffusers,
transformers, peft and `nasa`, which lies beside it.
"""

import io
import numbers
import threading
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from mlflow.pyfunc.model import PythonModel

from nasa import steer

BATCH = 8
FRAME_MILLISECONDS = 62.5  # Wan's 16 frames per second
LARGEST_SEED = 2**53  # the largest that a float holds exactly


class StudentPyfunc(PythonModel):
    """Generates one image per row.

    A row has a `prompt`, and optionally `negative_prompt`, `seed` (0) and `scale` (the version's own). An empty
    negative prompt means none. The same row gives the same image in any table.
    """

    def load_context(self, context: Any) -> None:
        """Load the student's pipeline."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        student = Path(__file__).parent / "student"
        self.pipe = DiffusionPipeline.from_pretrained(student, use_safetensors=True, local_files_only=True).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.options = dict(context.model_config["options"])
        self.scale = float(context.model_config["scale"])
        self.lock = threading.Lock()  # MLflow's server calls `predict` in several threads

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[bytes]:
        """Return one PNG per row."""
        defaults = {"negative_prompt": "", "seed": 0, "scale": self.scale}
        table = model_input.reindex(columns=["prompt", *defaults]).astype(object)
        rows = table.where(table.notna(), pd.Series({"prompt": "", **defaults}), axis=1).to_dict("records")
        return [
            png for first in range(0, len(rows), BATCH) for png in self._generate_images(rows[first : first + BATCH])
        ]

    def _generate_images(self, rows: list[dict[str, Any]]) -> list[bytes]:
        negatives = [row["negative_prompt"] for row in rows]
        scales = [_parse_scale(row["scale"]) if row["negative_prompt"] else 0.0 for row in rows]
        seeds = [torch.Generator().manual_seed(_parse_seed(row["seed"])) for row in rows]
        with self.lock, steer(self.pipe, negatives if any(scales) else None, scales):
            prompts = [row["prompt"] for row in rows]
            images = self.pipe(prompt=prompts, generator=seeds, output_type="pil", return_dict=False, **self.options)[0]
        return [_encode_png(image) for image in images]


def _parse_seed(value: Any) -> int:
    """Return a whole number, which arrives as a float if other rows of the table have none."""
    seed = float(value) if isinstance(value, numbers.Real) else -1.0
    if not seed.is_integer() or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed: got {value!r}; expected a whole number of 0 to {LARGEST_SEED}.")
    return int(seed)


def _parse_scale(value: Any) -> float:
    scale = float(value) if isinstance(value, numbers.Real) else -1.0
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale: got {value!r}; expected a number of 0 or more.")
    return scale


def _encode_png(image: Any) -> bytes:
    """Return an image as PNG, or a video, which is a list of frames, as animated PNG."""
    first, *more = image if isinstance(image, list) else [image]
    buffer, animation = io.BytesIO(), {"save_all": True, "append_images": more, "duration": FRAME_MILLISECONDS}
    first.save(buffer, format="PNG", **(animation if more else {}))
    return buffer.getvalue()


mlflow.models.set_model(StudentPyfunc())
