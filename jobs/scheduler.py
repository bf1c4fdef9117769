"""Submit scheduled distillations when they are due, until it is stopped; itself a Ray job."""

import argparse
import os
from contextlib import nullcontext

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_store_option(parser)
    shared.add_job_server_option(parser)
    parser.add_argument("--once", action="store_true", help="poll once, and exit")


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.job_client import connect_from_job
    from pipeline.errors import IN_JOB
    from pipeline.ray_session import start_ray_session
    from pipeline.schedules.prometheus import ScheduleGauges
    from pipeline.schedules.schedule_store import ScheduleStore
    from pipeline.schedules.scheduler import Scheduler, serve
    from pipeline.storage import Folder

    address = os.environ.get("RAY_ADDRESS") if os.environ.get(IN_JOB) else None  # a job's cluster exports the gauges
    store = ScheduleStore(Folder.from_uri(options.store))
    client = connect_from_job(options.job_server)
    print(f"schedules of {store.folder.uri}: {', '.join(store.list_names()) or 'none yet'}", flush=True)
    with start_ray_session(address) if address else nullcontext():
        gauges = ScheduleGauges() if address else None
        scheduler = Scheduler(store, client, lambda line: print(line, flush=True), gauges)
        serve(scheduler, 1 if options.once else None)
