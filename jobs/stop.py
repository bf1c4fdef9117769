"""Stop a submitted job; its checkpoints stay, and `submit --retry` resumes it."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job(parser)
    shared.add_job_server(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.client import cluster_at
    from pipeline.cluster.listing import details_of, stop

    with cluster_at(options.job_server) as client:
        details = details_of(client, options.job)
        print(f"{details.submission_id}: {stop(client, details.submission_id)}")
