"""Evaluate the student and its teacher: scores, a contact sheet and a report."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    shared.add_override_options(parser)
    shared.add_tracking_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.summary_table import format_summary

    folder = shared.resolve_folder(options, "evaluation")
    summary = evaluate(
        shared.resolve_folder(options, "distilled"),
        shared.resolve_folder(options, "prompts"),
        folder,
        shared.resolve_tracking_uri(options),
        options.overrides,
        options.ray_address,
    )
    print(format_summary(summary))
    print(f"report: {folder.uri}/report.html\ncontact sheet: {folder.uri}/contact_sheet.png")
