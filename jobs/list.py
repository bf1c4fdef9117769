"""List the jobs that were submitted to a Ray cluster."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_server(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.job_client import cluster_at
    from pipeline.cluster.job_listing import job_rows

    with cluster_at(options.job_server) as client:
        print(shared.table(job_rows(client), "no jobs yet; `python -m jobs submit` sends one"))
