"""Time per step by number of workers, measured on this machine or extrapolated to a cluster.

    python -m benchmarks.scaling                     # 1, 2 and 4 workers on this machine, the same work for each
    python -m benchmarks.scaling --extrapolate sd21  # to 64 GPUs, from operations, gradient bytes and link speeds

Each round runs every number of workers twice: as one distributed training, and as independent trainings of one worker.
Both load the machine alike, so the difference is communication and waiting for the slowest worker.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

from benchmarks.toy_students import BASE, build_distiller
from pipeline import models, recipe
from pipeline.gpu_specs import GPUS
from pipeline.recipe import Recipe
from pipeline.training import engines
from pipeline.training.distiller import Distiller
from pipeline.training.resource_estimate import UTILISATION, build_meta_denoiser, estimate

WARM_UP = 2
GPUS_PER_NODE = 8
LINKS = {  # bytes per second and GPU, one direction, from data sheets
    "A100-40GB": 300e9,
    "A100-80GB": 300e9,
    "H100": 450e9,
    "H200": 450e9,
}
NETWORKS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9, "1600 Gbit/s": 200e9}  # bytes per second and node


def load_recipe(workers: int, images: int) -> Recipe:
    sets = [f"train.num_workers={workers}", f"train.batch_size={workers * images}", "train.clip_weight=0"]
    sets += ["method.lora_guidance=true", "regression.weight=0"]  # a step as in the paper's recipes
    return recipe.load(BASE, sets)


def run_worker(rank: int, workers: int, images: int, steps: int, distributed: bool, folder: str) -> None:
    """Run one worker, and write its mean seconds per step to a file."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    world_size, group_rank = (workers, rank) if distributed else (1, 0)
    store = f"file://{folder}/{'distributed' if distributed else rank}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=group_rank, world_size=world_size)
    options = load_recipe(world_size, images)
    negatives = build_distiller(options).negatives
    model = models.load(models.find_teacher_folder(options.teacher))
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size)
    stepper = Distiller(options, model, built, negatives, None, None, None, group_rank, world_size)
    prompts = [f"a photo of a {colour} star" for colour in ("red", "blue", "green", "white")] * images
    for step in range(WARM_UP):
        stepper.step(step, prompts[:images])
    _wait_for_all(folder, rank, workers)
    started = time.perf_counter()
    for step in range(WARM_UP, WARM_UP + steps):
        stepper.step(step, prompts[:images])
    Path(f"{folder}/seconds-{rank}").write_text(str((time.perf_counter() - started) / steps))
    torch.distributed.destroy_process_group()


def _wait_for_all(folder: str, rank: int, workers: int) -> None:
    Path(f"{folder}/ready-{rank}").touch()
    while not all(Path(f"{folder}/ready-{other}").exists() for other in range(workers)):
        time.sleep(0.01)


def measure_once(workers: int, images: int, steps: int, distributed: bool) -> float:
    """Return the mean seconds per step over the workers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, images, steps, distributed, folder)
        torch.multiprocessing.spawn(run_worker, arguments, nprocs=workers, join=True)
        return float(np.mean([float(Path(f"{folder}/seconds-{rank}").read_text()) for rank in range(workers)]))


def measure(counts: Sequence[int], images: int, steps: int, rounds: int) -> None:
    durations: dict[tuple[int, bool], list[float]] = {
        (n, distributed): [] for n in counts for distributed in (True, False)
    }
    for _ in range(rounds):
        for (workers, distributed), seconds in durations.items():
            seconds.append(measure_once(workers, images, steps, distributed))
    print("| workers | s/step | images/s | independent trainings, s/step | communication and waiting |")
    print("|---|---|---|---|---|")
    for workers in counts:
        joint, independent = np.array(durations[workers, True]), np.array(durations[workers, False])
        low, median, high = (100 * value for value in np.percentile(1 - independent / joint, (0, 50, 100)))
        seconds = np.median(joint)
        print(
            f"| {workers} | {seconds:.2f} | {workers * images / seconds:.1f} | {np.median(independent):.2f} "
            f"| {median:.1f} % ({low:.1f} to {high:.1f}) |"
        )


def estimate_ring_seconds(size: float, gpus: int, link: float, network: float) -> float:
    """Return the seconds of reduce-scatter and all-gather of `size` bytes: 2 (N - 1) / N of them pass the slowest link.

    Within a node that is a GPU's own link; between nodes it is the node's network, which the rings of its GPUs share.
    """
    slowest = link if gpus <= GPUS_PER_NODE else min(link, network)
    return 2 * (gpus - 1) / gpus * size / slowest


def extrapolate(name: str, gpu: str) -> None:
    options = recipe.load(name, [f"train.gpu={gpu}"])
    images = options.train.batch_size // options.train.num_workers
    per_image = estimate(options).flops / images
    peak = GPUS[gpu].flops[options.train.precision]
    size = 4.0 * sum(p.numel() for p in build_meta_denoiser(options)[0].parameters())
    print(f"{name} on {gpu}: {per_image / 1e12:.1f} TFLOP/image, {size / 1e9:.2f} GB of float32 gradients")
    print("| GPUs | images/GPU | total batch | compute, s | " + " | ".join(f"at {n}" for n in NETWORKS) + " |")
    print("|---|---|---|---|" + "---|" * len(NETWORKS))
    for gpus in (4, 8, 16, 32, 64):
        for per_gpu in sorted({images, max(1, options.train.batch_size // gpus)}, reverse=True):
            compute = per_gpu * per_image / (UTILISATION * peak)
            cells: list[Any] = []
            for network in NETWORKS.values():
                waiting = estimate_ring_seconds(size, gpus, LINKS[gpu], network)
                cells.append(
                    f"{gpus * per_gpu / (compute + waiting):,.0f} images/s ({waiting / (compute + waiting):.0%})"
                )
            print(f"| {gpus} | {per_gpu} | {gpus * per_gpu} | {compute:.2f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4], help="numbers of workers")
    parser.add_argument("--images", type=int, default=8, help="images per step and worker")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extrapolate", metavar="RECIPE", help="calculate a recipe's speed on 4 to 64 GPUs")
    parser.add_argument("--gpu", choices=GPUS, default="A100-40GB")
    arguments = parser.parse_args()
    if arguments.extrapolate:
        extrapolate(arguments.extrapolate, arguments.gpu)
    else:
        measure(arguments.workers, arguments.images, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
