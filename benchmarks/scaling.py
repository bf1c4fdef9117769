"""How a step's time grows with the workers, and what it would be on a cluster.

    python -m benchmarks.scaling                     # 1, 2 and 4 workers on this machine, the same work for each
    python -m benchmarks.scaling --extrapolate sd21  # to 64 GPUs, from arithmetic, gradient bytes and link speeds

Each number of workers runs twice in each round: as one distributed training, and as so many trainings that know nothing
of each other. Both load the machine alike, so what the first takes more is communication and waiting for the slowest.
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

from benchmarks.ablation import runs
from pipeline import models, recipe
from pipeline.gpus import GPUS
from pipeline.recipe import Recipe
from pipeline.training import distiller, engines
from pipeline.training.estimate import UTILISATION, estimate, meta_denoiser

WARM_UP = 2
GPUS_A_NODE = 8
LINKS = {  # bytes a second of a GPU: data sheets, one direction
    "A100-40GB": 300e9,
    "A100-80GB": 300e9,
    "H100": 450e9,
    "H200": 450e9,
}
NETWORKS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9, "1600 Gbit/s": 200e9}  # bytes a second of a node


def settings(workers: int, images: int) -> Recipe:
    sets = [f"train.num_workers={workers}", f"train.batch_size={workers * images}", "train.clip_weight=0"]
    return recipe.load("shapes", sets)


def process(rank: int, workers: int, images: int, steps: int, together: bool, place: str) -> None:
    """One worker; its mean seconds a step go to a file."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    world, own_rank = (workers, rank) if together else (1, 0)
    store = f"file://{place}/{'together' if together else rank}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=own_rank, world_size=world)
    options = settings(world, images)
    like = runs.fresh(options)
    model = models.load(models.teacher_folder(options.teacher))
    built = engines.build(options, model, torch.device("cpu"), workers=world)
    made = distiller.Distiller(options, model, built, like.negatives, None, None, own_rank, world)
    prompts = [f"a photo of a {colour} star" for colour in ("red", "blue", "green", "white")] * images
    for step in range(WARM_UP):
        made.step(step, prompts[:images])
    _all_ready(place, rank, workers)
    started = time.perf_counter()
    for step in range(WARM_UP, WARM_UP + steps):
        made.step(step, prompts[:images])
    Path(f"{place}/seconds-{rank}").write_text(str((time.perf_counter() - started) / steps))
    torch.distributed.destroy_process_group()


def _all_ready(place: str, rank: int, workers: int) -> None:
    Path(f"{place}/ready-{rank}").touch()
    while not all(Path(f"{place}/ready-{other}").exists() for other in range(workers)):
        time.sleep(0.01)


def once(workers: int, images: int, steps: int, together: bool) -> float:
    """Seconds a step: the mean over the workers."""
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.spawn(process, (workers, images, steps, together, place), nprocs=workers, join=True)
        return float(np.mean([float(Path(f"{place}/seconds-{rank}").read_text()) for rank in range(workers)]))


def measure(counts: Sequence[int], images: int, steps: int, rounds: int) -> None:
    taken: dict[tuple[int, bool], list[float]] = {(n, together): [] for n in counts for together in (True, False)}
    for _ in range(rounds):
        for (workers, together), seconds in taken.items():
            seconds.append(once(workers, images, steps, together))
    print("| workers | s a step | images/s | the same, apart, s a step | lost to communication and waiting |")
    print("|---|---|---|---|---|")
    for workers in counts:
        joint, apart = np.array(taken[workers, True]), np.array(taken[workers, False])
        low, middle, high = (100 * value for value in np.percentile(1 - apart / joint, (0, 50, 100)))
        seconds = np.median(joint)
        print(
            f"| {workers} | {seconds:.2f} | {workers * images / seconds:.1f} | {np.median(apart):.2f} "
            f"| {middle:.1f} % ({low:.1f} to {high:.1f}) |"
        )


def ring_seconds(size: float, gpus: int, link: float, network: float) -> float:
    """Reduce-scatter and all-gather of `size` bytes: 2 (N - 1) / N of them pass the slowest link.

    Within a node that is a GPU's own link; between nodes the node's network, which its GPUs' rings share.
    """
    slowest = link if gpus <= GPUS_A_NODE else min(link, network)
    return 2 * (gpus - 1) / gpus * size / slowest


def extrapolate(name: str, gpu: str) -> None:
    options = recipe.load(name, [f"train.gpu={gpu}"])
    images = options.train.batch_size // options.train.num_workers
    per_image = estimate(options).flops / images
    peak = GPUS[gpu].flops[options.train.precision]
    size = 4.0 * sum(p.numel() for p in meta_denoiser(options)[0].parameters())
    print(f"{name} on {gpu}: {per_image / 1e12:.1f} TFLOP an image, {size / 1e9:.2f} GB of float32 gradients")
    print("| GPUs | images a GPU | total batch | arithmetic, s | " + " | ".join(f"at {n}" for n in NETWORKS) + " |")
    print("|---|---|---|---|" + "---|" * len(NETWORKS))
    for gpus in (4, 8, 16, 32, 64):
        for own in sorted({images, max(1, options.train.batch_size // gpus)}, reverse=True):
            arithmetic = own * per_image / (UTILISATION * peak)
            cells: list[Any] = []
            for network in NETWORKS.values():
                waiting = ring_seconds(size, gpus, LINKS[gpu], network)
                cells.append(
                    f"{gpus * own / (arithmetic + waiting):,.0f} images/s ({waiting / (arithmetic + waiting):.0%})"
                )
            print(f"| {gpus} | {own} | {gpus * own} | {arithmetic:.2f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=8, help="of a step and worker")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extrapolate", metavar="RECIPE")
    parser.add_argument("--gpu", choices=GPUS, default="A100-40GB")
    arguments = parser.parse_args()
    if arguments.extrapolate:
        extrapolate(arguments.extrapolate, arguments.gpu)
    else:
        measure(arguments.workers, arguments.images, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
