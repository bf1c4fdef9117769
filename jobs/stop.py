"""Stop a submitted job; its checkpoints stay, and `submit --retry` resumes it."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_argument(parser)
    shared.add_job_server_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.job_client import connect_to_cluster
    from pipeline.cluster.job_listing import find_job_details, stop_job

    with connect_to_cluster(options.job_server) as client:
        details = find_job_details(client, options.job)
        print(f"{details.submission_id}: {stop_job(client, details.submission_id)}")
