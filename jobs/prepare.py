"""Write prompt shards and the negative-prompt corpus as Parquet."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    shared.add_recipe_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.prompts.prepare import prepare

    folder = shared.resolve_folder(options, "prompts")
    prepared = prepare(shared.load_recipe(options), folder, options.ray_address, print)
    for name, source in prepared.sources.items():
        for reason, count in sorted(source.removed.items(), key=lambda item: -item[1]):
            print(f"{name}: {count} of {source.rows} removed: {reason}")
    print(
        f"prepared {prepared.prompts} prompts (shards: {prepared.shards}, prompts per epoch: {prepared.epoch}) and "
        f"{prepared.negative_prompts} negative prompts: {folder.uri}"
    )
