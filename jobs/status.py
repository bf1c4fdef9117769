"""Print the state of a submitted job."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_argument(parser)
    shared.add_job_server_option(parser)


def run(options: argparse.Namespace) -> int:
    from pipeline.cluster.job_client import connect_to_cluster
    from pipeline.cluster.job_listing import describe_job, find_job_details
    from pipeline.cluster.job_logs import ENDED, exit_code

    with connect_to_cluster(options.job_server) as client:
        details = find_job_details(client, options.job)
    for name, value in describe_job(details).items():
        print(f"{name:9} {value}")
    if details.message:
        print(f"message   {details.message.strip().splitlines()[0]}")
    return exit_code(details) if details.status in ENDED else 0
