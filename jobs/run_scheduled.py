"""Run the scheduled distillation that is due, if it has not run yet. Meant for cron."""

import argparse

from jobs import options as shared
from pipeline.errors import invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", required=True, metavar="FOLDER", help="folder of the schedule's history, lease and runs"
    )
    parser.add_argument(
        "--scheduled-time", metavar="TIME", help="time to run, such as 20261129T0300Z (default: the latest)"
    )
    parser.add_argument("--cron", metavar="FIELDS", help="cron expression instead of the recipe's schedule.cron")
    parser.add_argument("--timezone", metavar="NAME", help="time zone instead of the recipe's schedule.timezone")
    shared.add_recipe_options(parser)
    parser.set_defaults(recipe=None)
    shared.add_tracking_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.schedules.schedule_store import ScheduleStore
    from pipeline.schedules.scheduled_run import run_scheduled
    from pipeline.storage import Folder

    home, scheduled_time = Folder.from_uri(options.runs), shared.parse_scheduled_time(options.scheduled_time)
    if options.recipe is None:
        schedule = ScheduleStore(home.parent).read(home.uri.rpartition("/")[2])
        recipe, tracking = schedule.recipe, schedule.tracking_uri
    else:
        recipe, tracking = shared.load_recipe(options), shared.resolve_tracking_uri(options)
        if not (scheduled_time or recipe.schedule.cron):
            raise invalid(
                "schedule.cron", "", "five fields", "Pass --cron, such as '0 3 * * SUN', or --scheduled-time."
            )
    print(run_scheduled(recipe, home, tracking, options.ray_address, scheduled_time=scheduled_time))
