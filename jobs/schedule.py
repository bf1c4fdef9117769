"""Manage recurring distillations: add, list, pause, resume, remove, run-now, history."""

import argparse

from jobs import options as shared

ACTIONS = ("add", "list", "pause", "resume", "remove", "run-now", "history")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", nargs="?", help="name of the schedule")
    shared.add_store_option(parser)
    parser.add_argument("--cron", metavar="FIELDS", help="add: cron expression instead of the recipe's schedule.cron")
    parser.add_argument("--timezone", metavar="NAME", help="add: time zone instead of the recipe's schedule.timezone")
    shared.add_recipe_options(parser)
    shared.add_tracking_options(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.schedules import schedule_tables
    from pipeline.schedules.schedule_store import ScheduleStore
    from pipeline.storage import Folder

    store = ScheduleStore(Folder.from_uri(options.store))
    if options.action == "list":
        print(
            shared.format_table(
                schedule_tables.build_schedule_rows(store), "no schedules yet; `python -m jobs schedule add` makes one"
            )
        )
        return
    name = shared.require_option(options, "name")
    if options.action == "history":
        print(shared.format_table(schedule_tables.build_history_rows(store, name), "nothing was due yet"))
    elif options.action == "add":
        recipe, tracking = shared.load_recipe(options), shared.resolve_tracking_uri(options)
        if not store.folder.is_local:
            shared.require_shared_prompts(recipe)
            tracking = shared.require_shared_tracking(options.tracking_uri)
        store.add(name, recipe, tracking)
        print(
            f"{name}: next {schedule_tables.format_next_time(store.read(name))}; `python -m jobs scheduler` submits it"
        )
    elif options.action == "run-now":
        scheduled_time = store.request_run_now(name)
        paused = " once, though the schedule is paused" if store.read(name).paused else ""
        print(f"{name}: {scheduled_time} runs{paused}; `python -m jobs scheduler` submits it")
    elif options.action == "remove":
        store.remove(name)
        print(f"{name}: removed; its runs and history are in {store.get_folder(name).uri}")
    else:
        schedule = store.set_paused(name, options.action == "pause")
        print(f"{name}: {'paused' if schedule.paused else f'next {schedule_tables.format_next_time(schedule)}'}")
