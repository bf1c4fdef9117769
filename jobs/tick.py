"""Do what a recurring distillation has due now, unless it was done; for a scheduler to start."""

import argparse

from jobs import options as shared
from pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", required=True, metavar="FOLDER", help="of this schedule: its history, its lock and its runs"
    )
    parser.add_argument("--tick", metavar="TIME", help="this one, such as 20261129T0300Z (default: the latest)")
    parser.add_argument("--cron", metavar="FIELDS", help="in place of the recipe's schedule.cron")
    parser.add_argument("--timezone", metavar="NAME", help="in place of the recipe's schedule.timezone")
    shared.add_recipe(parser)
    parser.set_defaults(recipe=None)
    shared.add_tracking(parser)
    parser.add_argument("--address", metavar="ADDRESS", help="a Ray cluster (default: a local one)")


def run(options: argparse.Namespace) -> None:
    from pipeline.schedules.store import Schedules
    from pipeline.schedules.tick import run_tick
    from pipeline.storage import Folder

    home, tick = Folder.of(options.runs), shared.tick_of(options.tick)
    if options.recipe is None:
        schedule = Schedules(home.parent).read(home.uri.rpartition("/")[2])
        recipe, tracking = schedule.recipe, schedule.tracking_uri
    else:
        recipe, tracking = shared.recipe_of(options), shared.tracking_of(options)
        if not (tick or recipe.schedule.cron):
            raise UserError("schedule.cron: is empty; allowed: --cron, such as '0 3 * * SUN', or --tick")
    print(run_tick(recipe, home, tracking, options.address, tick=tick))
