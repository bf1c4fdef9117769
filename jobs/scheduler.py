"""Submit what the schedules have due, until it is ended; a job of its own."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_store(parser)
    shared.add_cluster(parser)
    parser.add_argument("--once", action="store_true", help="look once, and end")


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.client import connect_from_job
    from pipeline.cluster.scheduler import Scheduler, serve
    from pipeline.schedules.store import Schedules
    from pipeline.storage import Folder

    schedules = Schedules(Folder.of(options.store))
    client = connect_from_job(options.address)
    print(f"schedules of {schedules.store.uri}: {', '.join(schedules.names()) or 'none yet'}", flush=True)
    serve(Scheduler(schedules, client, say=lambda line: print(line, flush=True)), 1 if options.once else None)
