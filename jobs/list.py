"""List the jobs that were submitted to a Ray cluster."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_server_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.job_client import connect_to_cluster
    from pipeline.cluster.job_listing import list_jobs

    with connect_to_cluster(options.job_server) as client:
        print(shared.format_table(list_jobs(client), "no jobs yet; `python -m jobs submit` sends one"))
