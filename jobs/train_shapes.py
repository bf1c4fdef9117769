"""Train the bundled networks of the Shapes toy dataset; run again to resume."""

import argparse
from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "pipeline" / "shapes" / "weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, default=Path("runs/shapes-weights"), help="folder for training states")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")


def run(options: argparse.Namespace) -> None:
    from pipeline.shapes_training.train_all import build

    build(options.work, options.out, options.threads)
