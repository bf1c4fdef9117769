"""Write the prompts that models are compared on: the paper's pairs, a sample of NegOpt, HPSv2's."""

import argparse

from datasets_prep.benchmark_prompts import NEGOPT_PAIRS
from jobs import options as shared
from pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run(parser)
    parser.add_argument("--negopt", metavar="FILES", help="NegOpt's Parquet: a file, a folder or a pattern with *")
    parser.add_argument("--hpsv2", metavar="FOLDER", help="anime.json, concept-art.json, paintings.json, photo.json")
    parser.add_argument("--pairs", type=int, default=NEGOPT_PAIRS, help="to draw of NegOpt")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")


def run(options: argparse.Namespace) -> None:
    from pipeline.prompts.benchmarks import prepare_benchmarks

    if options.pairs < 1:
        raise UserError(f"--pairs: {options.pairs} is not allowed; allowed: 1 or more")
    folder = shared.folder_of(options, "benchmarks")
    files = prepare_benchmarks(folder, options.negopt, options.hpsv2, options.pairs, options.seed)
    for name, file in files.items():
        print(f"{file.rows:>6} rows: {folder.uri}/{name}")
