"""Pairs of noise and the teacher's image, on which the student regresses beside the VSD loss.

A pair is stored as its prompt, the seed of its noise, and the latents that the teacher's many steps made of both.
Parquet files of a folder hold the pairs, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from nasa.random_numbers import draw_seeded_noise, mix_seeds
from pipeline.errors import UserError, invalid
from pipeline.recipe import BUNDLED, Recipe
from pipeline.shapes import WEIGHTS
from pipeline.storage import Folder

PAIRS_PER_FILE = 256
NOISE_TOLERANCE = 1e-5
_STREAM = 2  # of random numbers, apart from those that noise a step's images


@dataclass(frozen=True)
class TeacherPairs:
    """N pairs: prompts, the seeds of their noise, latents float16 [N, C, H, W], and the folder they were read from."""

    prompts: list[str]
    seeds: list[int]
    latents: Tensor
    uri: str = ""

    @staticmethod
    def read(folder: Folder, count: int) -> "TeacherPairs":
        """Read the first `count` pairs of a folder.

        Raises:
            UserError: if there are fewer, or this machine's generator makes another noise from their seeds.
        """
        tables = [folder.read_table(name) for name in list_pair_files(count) if folder.exists(name)]
        table = pa.concat_tables(tables).slice(0, count) if tables else None
        if table is None or table.num_rows < count:
            got = 0 if table is None else table.num_rows
            raise invalid("regression.num_pairs", count, f"at most {got}, the pairs in {folder.uri}")
        shape = tuple(table["shape"][0].as_py())
        content = b"".join(table["latents"].to_pylist())
        latents = torch.from_numpy(np.frombuffer(content, np.float16).reshape(count, *shape).copy())
        pairs = TeacherPairs(table["prompt"].to_pylist(), table["seed"].to_pylist(), latents, folder.uri)
        first = draw_seeded_noise(pairs.seeds[:1], shape).flatten()[0].item()
        if abs(first - table["first_noise"][0].as_py()) > NOISE_TOLERANCE:
            raise UserError(
                f"{folder.uri}: seed {pairs.seeds[0]} gives other noise here than where the pairs were sampled. "
                "Sample them again, with this version of torch."
            )
        return pairs

    def to_table(self) -> pa.Table:
        """Return the pairs as a table of a file."""
        noise = [draw_seeded_noise([seed], tuple(self.latents.shape[1:])).flatten()[0].item() for seed in self.seeds]
        return pa.table(
            {
                "prompt": self.prompts,
                "seed": pa.array(self.seeds, pa.int64()),
                "latents": pa.array([row.numpy().tobytes() for row in self.latents.half().cpu()], pa.binary()),
                "shape": pa.array([list(self.latents.shape[1:])] * len(self.seeds), pa.list_(pa.int32())),
                "first_noise": pa.array(noise, pa.float64()),
            }
        )

    def draw_rows(self, seed: int, step: int, sample_indices: Sequence[int]) -> list[int]:
        """Return a pair for each of a step's images, by its index in the global batch."""
        return [mix_seeds(seed, step, _STREAM, index) % len(self.prompts) for index in sample_indices]

    def get_noise(self, rows: Sequence[int]) -> Tensor:
        """Return the noise of some pairs, float32 [B, C, H, W]."""
        return draw_seeded_noise([self.seeds[row] for row in rows], tuple(self.latents.shape[1:]))


def open_pairs_folder(path: str) -> Folder:
    """Return a folder of pairs; "shapes" is this node's own copy of the bundled ones."""
    return Folder.from_uri(str(WEIGHTS / "pairs") if path == BUNDLED else path)


def read_pairs(recipe: Recipe, path: str) -> TeacherPairs | None:
    """Read the pairs of a recipe's regression from a folder or the bundled ones; None if the path is empty."""
    return TeacherPairs.read(open_pairs_folder(path), recipe.regression.num_pairs) if path else None


def list_pair_files(count: int) -> list[str]:
    """Return the names of the files that hold the first `count` pairs."""
    return [f"pairs-{number:05d}.parquet" for number in range(-(-count // PAIRS_PER_FILE))]
