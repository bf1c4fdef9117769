"""List the jobs that were submitted to a Ray cluster."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_cluster(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.cluster.client import connect
    from pipeline.cluster.listing import rows

    print(shared.table(rows(connect(options.address)), "no jobs yet; `python -m jobs submit` sends one"))
