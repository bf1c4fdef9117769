"""HPSv2 with the authors' weights: a check of their published score, and the time per image.

    python -m benchmarks.hpsv2 --golden HPS_v2_compressed.pt demo_image.jpg   # the image is in HPSv2's repository
    python -m benchmarks.hpsv2 HPS_v2.1_compressed.pt --images 32             # seconds to load, and per image

The weights are 4 GB, in xswu/HPSv2 on the hub. The published score is 0.2876, of the prompt "A cat with two horns on
its head" in version 2.0, when torchvision did not antialias by default. `tests/data/scorers/time_hpsv2x.py` times
hpsv2x on the same images and prompts.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image

from pipeline.evaluation import scorers
from pipeline.evaluation.scorers import Metric

GOLDEN, PROMPT = 28.76, "A cat with two horns on its head"
TOLERANCE = 0.05  # four digits were published, of a score in half precision, whose steps are 0.024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--version", default="v2.1", choices=("v2.0", "v2.1"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.golden and arguments.image is None:
        parser.error("--golden: got no image; expected WEIGHTS IMAGE.")
    if arguments.golden:
        sys.exit(not check_golden(arguments.weights, arguments.image, arguments.device))
    metric = Metric(weights=arguments.weights, version=arguments.version, jpeg_quality=0)
    measure_time(metric, arguments.images, arguments.device)


def check_golden(weights: str, file: Path, device: str) -> bool:
    """Return whether the score equals the published one, with one of the two resizes."""
    close = False
    for antialias in (False, True):
        metric = Metric(weights=weights, version="v2.0", antialias=antialias, jpeg_quality=0)
        scorers.check(metric)
        (score,) = scorers.load(metric, device)([PIL.Image.open(file)], [PROMPT], [None])["hpsv2"]
        close |= abs(score - GOLDEN) < TOLERANCE
        print(f"antialias {antialias}: {score:.3f}; published: {GOLDEN}")
    return close


def measure_time(metric: Metric, count: int, device: str) -> None:
    start = time.perf_counter()
    scorer = scorers.load(metric, device)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 512, 512, 3), dtype=np.uint8)
    images, prompts = [PIL.Image.fromarray(each) for each in pixels], [f"photo number {n}" for n in range(count)]
    scorer(images[:1], ["the first image loads the weights"], [None])
    loaded = time.perf_counter()
    scores = scorer(images, prompts, [None] * count)["hpsv2"]
    seconds = (time.perf_counter() - loaded) / count
    print(f"load and first image: {loaded - start:.1f} s; per image: {seconds:.2f} s; mean {np.mean(scores):.4f}")


if __name__ == "__main__":
    main()
