"""End a submitted job; what it has stored stays, and submitting it with --retry continues."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_job(parser)
    shared.add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.client import connect
    from pipeline.cluster.listing import details_of, stop

    client = connect(options.address)
    details = details_of(client, options.job)
    print(f"{details.submission_id}: {stop(client, details.submission_id)}")
