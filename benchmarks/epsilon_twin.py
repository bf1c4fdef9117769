"""A twin of the toy teacher that predicts the noise, as Stable Diffusion 1.5 does, and what its students show.

    python -m benchmarks.epsilon_twin --seconds 60 --seeds 2     # half an hour of one core; finished runs are kept

The bundled teacher predicts v. Its twin is the same network, trained until its predicted noise is the teacher's, on the
teacher's own images. A one-step student of the twin divides by alpha: at the last timestep its image moves 1 / alpha =
14.6 times as far as its output, from an earlier start timestep less.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import convergence
from benchmarks.convergence import LEVERS, compare, format_table
from benchmarks.toy_students import judge_held_out
from nasa.parameterization import add_noise, to_eps
from pipeline import ROOT, models, recipe
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.models import TextToImage
from pipeline.prompts.teacher_pairs import read_pairs
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE, NULL_TEXT_SHARE = 1200, 48, 1e-3, 0.1
EARLY = 749  # 1 / alpha is 4.2
STARTS = {"the last timestep": -1, f"timestep {EARLY}": EARLY}
TEACHER_PROMPTS, FIRST_SEED = 64, 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/epsilon"), help="folder of the twin")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of the twin (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of training per student (%(default)g)")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs/data/epsilon_twin.json", help="file of the finished runs"
    )
    options = parser.parse_args()
    twin = options.work / "teacher"
    if not twin.is_dir():
        make_twin(options.work, options.steps)
    shares = judge_teacher(twin), judge_teacher()
    print("clean and right in 25 steps, guidance 3: the twin {:.3f}, the bundled teacher {:.3f}".format(*shares))
    rows = compare(build_levers(twin), options.seeds, options.seconds, options.out, options.processes)
    print(format_table([*read_rows_of_teacher(options.seeds, options.seconds), *rows]))


def read_rows_of_teacher(seeds: int, seconds: float) -> list[dict[str, Any]]:
    """Return the recorded rows of the bundled teacher, which `benchmarks.convergence` made with the same levers."""
    rows = json.loads(convergence.DATA.read_text())
    wanted = (row for row in rows if row["seed"] < seeds and row["seconds"] == seconds and row["lever"] in LEVERS)
    return [{**row, "lever": f"v: {row['lever']}"} for row in wanted if row["overrides"] == LEVERS[row["lever"]]]


def build_levers(twin: Path) -> dict[str, list[str]]:
    """Return the recipe's overrides for each lever of `benchmarks.convergence`, from both start timesteps."""
    levers: dict[str, list[str]] = {}
    for place, start in STARTS.items():
        own = [f"teacher={twin}", f"method.start_timestep={start}"]
        levers |= {f"epsilon from {place}: {name}": [*overrides, *own] for name, overrides in LEVERS.items()}
    return levers


def make_twin(work: Path, steps: int) -> None:
    """Train the twin and write its pipeline to `work/teacher`."""
    teacher, twin = (models.load(models.find_teacher_folder(recipe.BUNDLED)) for _ in range(2))
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    student = twin.denoiser.requires_grad_(True).train()
    fit(
        student,
        build_batches(teacher),
        lambda batch: compute_loss(student, teacher, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "twin.pt",
    )
    twin.pipe.scheduler.register_to_config(prediction_type="epsilon")
    twin.pipe.save_pretrained(work / "teacher")


def build_batches(teacher: TextToImage) -> Callable[[int], Batch]:
    """Return a function of the step that noises the teacher's own images, with their prompts or the null text."""
    pairs = read_pairs(recipe.load("shapes"), "shapes")
    assert pairs is not None
    with torch.no_grad():
        embeds = teacher.encode(["", *pairs.prompts]).embeds
    latents = pairs.latents.float()

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        named = torch.rand(BATCH, generator=generator) >= NULL_TEXT_SHARE
        return {
            "x0": latents[rows],
            "eps": torch.randn(BATCH, *latents.shape[1:], generator=generator),
            "timestep": torch.randint(teacher.diffusion.steps, (BATCH,), generator=generator),
            "embeds": embeds[(rows + 1) * named],
        }

    return draw_batch


def compute_loss(twin: nn.Module, teacher: TextToImage, batch: Batch) -> Tensor:
    """Return the mean squared difference between the twin's output and the teacher's predicted noise."""
    alpha, sigma = teacher.diffusion.alpha_sigma(batch["timestep"], batch["x0"])
    x_t = add_noise(batch["x0"], batch["eps"], alpha, sigma)
    with torch.no_grad():
        output = teacher.denoiser(x_t, batch["timestep"], batch["embeds"]).sample
    target = to_eps(output, x_t, alpha, sigma, teacher.diffusion.prediction_type)
    return F.mse_loss(twin(x_t, batch["timestep"], batch["embeds"]).sample, target)


def judge_teacher(folder: Path | None = None) -> float:
    """Return the share of held-out prompts that a teacher's 25 steps draw clean and right."""
    sampler = Sampler(models.load(folder or models.find_teacher_folder(recipe.BUNDLED)))
    method = SamplingMethod("steps", 3.0, 25)
    correct = judge_held_out(sampler, AttributeJudge.load(), method, TEACHER_PROMPTS, FIRST_SEED)
    return sum(correct) / len(correct)


if __name__ == "__main__":
    main()
