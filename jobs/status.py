"""Print the state of a submitted job."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job(parser)
    shared.add_job_server(parser)


def run(options: argparse.Namespace) -> int:
    from pipeline.cluster.client import cluster_at
    from pipeline.cluster.follow import ENDED, exit_code
    from pipeline.cluster.listing import details_of, row_of

    with cluster_at(options.job_server) as client:
        details = details_of(client, options.job)
    for name, value in row_of(details).items():
        print(f"{name:9} {value}")
    if details.message:
        print(f"message   {details.message.strip().splitlines()[0]}")
    return exit_code(details) if details.status in ENDED else 0
