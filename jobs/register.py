"""Register the evaluated student as a model version in MLflow."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run(parser)
    shared.add_tracking(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.registry import register

    outcome = register(
        shared.folder_of(options, "distilled"),
        shared.folder_of(options, "evaluation"),
        shared.folder_of(options, "registered"),
        shared.tracking_of(options),
    )
    print(f"registered {outcome['model']} version {outcome['version']} as {outcome['alias']}; `make ui` opens MLflow")
