"""List the jobs that were submitted to a Ray cluster."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_server(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.client import cluster_at
    from pipeline.cluster.listing import rows

    with cluster_at(options.job_server) as client:
        print(shared.table(rows(client), "no jobs yet; `python -m jobs submit` sends one"))
