"""Where the negative prompt goes in training: the paper's ablation on the world of shapes; run again to continue."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="runs/ablation", metavar="FOLDER", help="where the rows of finished runs are")
    parser.add_argument("--recipe", default="shapes", metavar="NAME", help="a recipe's name or .toml file")
    shared.add_overrides(parser)
    parser.add_argument("--steps", type=int, default=300, help="of each run, after the warm start")
    parser.add_argument("--warm-up-steps", type=int, default=300, help="of SBv2*, shared by all runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--docs", metavar="FOLDER", help="where to write the table and the figure (data, images, page)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from pipeline import recipe
    from pipeline.ablation import runs
    from pipeline.ablation.report import write
    from pipeline.errors import UserError

    for name in ("steps", "warm_up_steps", "seeds", "processes", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(options, name)} is not allowed; allowed: 1 or more")
    every_step = options.warm_up_steps + options.steps  # what the CLIP loss's weight falls to 0 over
    base = recipe.load(options.recipe, ["train.num_workers=1", f"train.steps={every_step}", *options.overrides])
    if base.teacher != recipe.BUNDLED:
        raise UserError(f"teacher: {base.teacher!r} has no judge; allowed: {recipe.BUNDLED!r}")
    folder = str(Path(options.run).absolute())
    plan = runs.Plan(base, options.warm_up_steps, options.steps, folder, options.threads)
    rows = runs.ablate(plan, range(options.seeds), options.processes)
    print(write(runs.summarise(rows), plan, Path(options.docs or folder)))
