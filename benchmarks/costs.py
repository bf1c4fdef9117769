"""The cost of one distillation on rented GPU nodes: hours by the estimate of `distill --dry-run`, prices by hand.

    python -m benchmarks.costs                                        # prices of docs/data/prices.json
    python -m benchmarks.costs --an-hour p4d.24xlarge=21.5            # today's, spot's or your own

The estimate assumes 40 % of a GPU's peak, and was not measured. Preparing, evaluating and starting are not in it.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pipeline import recipe
from pipeline.gpus import GPUS
from pipeline.training.estimate import estimate

PRICES = Path(__file__).parents[1] / "docs" / "data" / "prices.json"
RECIPES = ("sd15", "sd21", "pixart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, default=PRICES)
    parser.add_argument("--an-hour", action="append", default=[], metavar="INSTANCE=PRICE")
    options = parser.parse_args()
    own = {name: float(price) for name, _, price in (each.partition("=") for each in options.an_hour)}
    told = json.loads(options.prices.read_text())
    print(f"| recipe | node | workers | hours | GPU hours | {told['currency']} an hour | {told['currency']} a run |")
    print("|---|---|---|---|---|---|---|")
    for name in RECIPES:
        for node in told["nodes"]:
            print(row(name, {**node, "an_hour": own.get(node["instance"], node["an_hour"])}))


def row(name: str, node: dict[str, Any]) -> str:
    """One node's GPUs are all workers, with the recipe's own batch over them."""
    workers = node["gpus"]
    own = recipe.load(name, [f"train.num_workers={workers}", f'train.gpu="{node["gpu"]}"'])
    seconds = estimate(own).step_seconds(GPUS[node["gpu"]].flops[own.train.precision])
    hours = seconds * own.train.steps / 3600
    nodes = math.ceil(workers / node["gpus"])
    cost = hours * nodes * node["an_hour"]
    figures = f"{hours:.1f} | {hours * workers:.0f} | {node['an_hour']:.2f} | {cost:.0f}"
    return f"| {name} | {node['instance']}, 8 x {node['gpu']} | {workers} | {figures} |"


if __name__ == "__main__":
    main()
