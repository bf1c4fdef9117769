"""Write prompt shards and the negative-prompt corpus as Parquet."""

import argparse

from jobs import options as shared
from pipeline.prepare import prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run(parser)
    shared.add_recipe(parser)


def run(options: argparse.Namespace) -> None:
    folder = shared.folder_of(options, "prompts")
    counts = prepare(shared.recipe_of(options), folder)
    print(
        f"prepared {counts['prompts']} prompts in {counts['shards']} shards "
        f"and {counts['negative_prompts']} negative prompts: {folder.uri}"
    )
