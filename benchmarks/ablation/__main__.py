"""Run the paper's ablation on the Shapes toy dataset; run it again to resume."""

import argparse
import sys
from pathlib import Path

from benchmarks.ablation import runs
from benchmarks.ablation.report import write
from benchmarks.toy_students import BASE
from jobs import options as shared
from pipeline import recipe
from pipeline.errors import UserError, invalid


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the ablation and print its table; return exit code 2 after a user's error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--run", default="runs/ablation", metavar="FOLDER", help="folder of the runs")
    parser.add_argument("--recipe", default=BASE, metavar="NAME", help="name of a recipe, or a .toml file")
    shared.add_override_options(parser)
    parser.add_argument("--steps", type=int, default=100, help="steps of each run (%(default)s)")
    parser.add_argument(
        "--warm-up-steps",
        type=int,
        default=100,
        help="steps of SBv2* before a warm start (%(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=12, help="number of runs of each variant (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="number of runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="number of threads per process")
    parser.add_argument("--docs", metavar="FOLDER", help="folder of the table and the figure (default: --run)")
    options = parser.parse_args(arguments)
    try:
        print(_run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> str:
    for name in ("steps", "warm_up_steps", "seeds", "processes", "threads"):
        if getattr(options, name) < 1:
            raise invalid(f"--{name.replace('_', '-')}", getattr(options, name), "1 or more")
    base = recipe.load(options.recipe, ["train.num_workers=1", *options.overrides])
    if base.teacher != recipe.BUNDLED:
        raise invalid("teacher", base.teacher, f"{recipe.BUNDLED!r}, the teacher that the bundled judge knows")
    folder = str(Path(options.run).absolute())
    plan = runs.Plan(base, options.warm_up_steps, options.steps, folder, options.threads)
    rows = runs.ablate(plan, range(options.seeds), options.processes)
    return write(runs.summarise(rows), plan, Path(options.docs or folder))


if __name__ == "__main__":
    sys.exit(main())
