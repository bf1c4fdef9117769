"""The cost of one distillation on rented GPU nodes: the hours that `distill --dry-run` estimates, times a price.

    python -m benchmarks.costs                                        # prices of docs/data/prices.json
    python -m benchmarks.costs --price p4d.24xlarge=21.5              # your own price per hour

The estimate assumes 40 % of a GPU's peak and has not been compared with a measurement. It leaves out preparing prompts,
evaluating and starting nodes.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pipeline import recipe
from pipeline.gpu_specs import GPUS
from pipeline.training.resource_estimate import estimate

PRICES = Path(__file__).parents[1] / "docs" / "data" / "prices.json"
RECIPES = ("sd15", "sd21", "pixart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, default=PRICES)
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="INSTANCE=PRICE",
        help="price per hour; may be repeated",
    )
    options = parser.parse_args()
    overrides = {name: float(price) for name, _, price in (option.partition("=") for option in options.price)}
    prices = json.loads(options.prices.read_text())
    currency = prices["currency"]
    print(f"| recipe | node | workers | hours | GPU hours | {currency}/hour | {currency}/run |")
    print("|---|---|---|---|---|---|---|")
    for name in RECIPES:
        for node in prices["nodes"]:
            print(format_row(name, {**node, "an_hour": overrides.get(node["instance"], node["an_hour"])}))


def format_row(name: str, node: dict[str, Any]) -> str:
    """Return the row of a recipe on one node, all of whose GPUs are workers, with the recipe's own total batch."""
    workers = node["gpus"]
    options = recipe.load(name, [f"train.num_workers={workers}", f'train.gpu="{node["gpu"]}"'])
    seconds = estimate(options).step_seconds(GPUS[node["gpu"]].flops[options.train.precision])
    hours = seconds * options.train.steps / 3600
    nodes = math.ceil(workers / node["gpus"])
    cost = hours * nodes * node["an_hour"]
    cells = f"{hours:.1f} | {hours * workers:.0f} | {node['an_hour']:.2f} | {cost:.0f}"
    return f"| {name} | {node['instance']}, 8 x {node['gpu']} | {workers} | {cells} |"


if __name__ == "__main__":
    main()
