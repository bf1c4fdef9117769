"""Print the log of a submitted job."""

import argparse

from jobs import options as shared
from jobs import submit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job_argument(parser)
    shared.add_job_server_option(parser)
    parser.add_argument(
        "--follow", action="store_true", help="follow the log until the job ends, and exit with its exit code"
    )


def run(options: argparse.Namespace) -> int:
    from pipeline.cluster.job_client import connect_to_cluster
    from pipeline.cluster.job_listing import find_job_details

    with connect_to_cluster(options.job_server) as client:
        details = find_job_details(client, options.job)
        if options.follow:
            return submit.follow_until_end(client, details.submission_id)
        print(client.get_job_logs(details.submission_id), end="")
        return 0
