"""Prepare, distill, evaluate and register in one job; run again to resume."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    shared.add_recipe_options(parser)
    shared.add_tracking_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    recipe = shared.load_recipe(options)
    from pipeline.run_pipeline import run_pipeline
    from pipeline.storage import Folder

    run = Folder.from_uri(options.run)
    outcome = run_pipeline(
        recipe, run, shared.resolve_tracking_uri(options), options.ray_address, log=lambda step: print(step, flush=True)
    )
    alias = outcome.alias or "a version without an alias"
    print(f"registered {outcome.model} version {outcome.version} as {alias}: {outcome.decision}")
    print(f"report: {run.uri}/evaluation/report.html\ncontact sheet: {run.uri}/evaluation/contact_sheet.png")
