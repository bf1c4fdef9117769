"""Stop a submitted job; its checkpoints stay, and `submit --retry` resumes it."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job(parser)
    shared.add_job_server(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.job_client import cluster_at
    from pipeline.cluster.job_listing import job_details, stop_job

    with cluster_at(options.job_server) as client:
        details = job_details(client, options.job)
        print(f"{details.submission_id}: {stop_job(client, details.submission_id)}")
