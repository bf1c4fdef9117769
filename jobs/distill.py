"""Distil the teacher into a one-step student with NASA-T; run again to resume."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    shared.add_recipe_options(parser)
    shared.add_tracking_options(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, inputs, outputs and the estimated cost, and exit",
    )
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    recipe = shared.load_recipe(options)
    folder = shared.resolve_folder(options, "distilled")
    if options.dry_run:
        from pipeline.recipe import dump
        from pipeline.redaction import redact
        from pipeline.training.dry_run import describe

        prompts = shared.resolve_folder(options, "prompts")
        print(dump(recipe))
        print(f"reads   {prompts.uri}, teacher {recipe.teacher} at {recipe.revision}")
        print(f"writes  {folder.uri}, MLflow at {redact(shared.resolve_tracking_uri(options))}")
        print(describe(recipe, prompts))
        return
    from pipeline import manifest
    from pipeline.training.driver import distill

    finished = folder.exists(manifest.NAME)
    distilled = distill(
        recipe,
        shared.resolve_folder(options, "prompts"),
        folder,
        shared.resolve_tracking_uri(options),
        options.ray_address,
    )
    verb = "already distilled" if finished else "distilled"
    print(f"{verb}: {distilled.step} steps, student {distilled.student_sha256[:12]}: {folder.uri}/student")
