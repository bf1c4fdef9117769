"""Train the bundled networks of the Shapes toy dataset; run again to resume."""

import argparse
import math
from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "pipeline" / "shapes" / "weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, default=Path("runs/shapes-weights"), help="folder for training states")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--max-minutes", type=float, default=math.inf, help="limit of the whole training; learning rates end with it"
    )


def run(options: argparse.Namespace) -> None:
    from pipeline.shapes_training.train_all import build

    build(options.work, options.out, options.threads, options.device, options.max_minutes)
