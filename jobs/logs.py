"""Print the log of a submitted job."""

import argparse

from jobs import options as shared
from jobs import submit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job(parser)
    shared.add_job_server(parser)
    parser.add_argument(
        "--follow", action="store_true", help="follow the log until the job ends, and exit with its exit code"
    )


def run(options: argparse.Namespace) -> int:
    from pipeline.cluster.client import cluster_at
    from pipeline.cluster.listing import details_of

    with cluster_at(options.job_server) as client:
        details = details_of(client, options.job)
        if options.follow:
            return submit.followed(client, details.submission_id)
        print(client.get_job_logs(details.submission_id), end="")
        return 0
