"""Register the evaluated student as a model version in MLflow, and decide if it is the champion."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    shared.add_tracking_options(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.registry.register import register_run

    outcome = register_run(
        shared.resolve_folder(options, "distilled"),
        shared.resolve_folder(options, "evaluation"),
        shared.resolve_folder(options, "registered"),
        shared.resolve_tracking_uri(options),
    )
    alias = outcome.alias or "a version without an alias"
    print(f"registered {outcome.model} version {outcome.version} as {alias}: {outcome.decision}")
    print("`python -m jobs models` lists the versions, `make ui` opens MLflow")
