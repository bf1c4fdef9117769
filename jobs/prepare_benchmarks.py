"""Write the benchmark prompts: the paper's pairs, a sample of NegOpt, and HPSv2's prompts."""

import argparse

from datasets_prep.benchmark_prompts import NEGOPT_PAIRS
from jobs import options as shared
from pipeline.errors import invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run_options(parser)
    parser.add_argument(
        "--negopt", metavar="FILES", help="Parquet files of NegOpt: a file, a folder or a pattern with *"
    )
    parser.add_argument(
        "--hpsv2", metavar="FOLDER", help="folder of anime.json, concept-art.json, paintings.json and photo.json"
    )
    parser.add_argument("--pairs", type=int, default=NEGOPT_PAIRS, help="number of NegOpt pairs to sample")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling NegOpt pairs")


def run(options: argparse.Namespace) -> None:
    from pipeline.prompts.prepare_benchmarks import prepare_benchmarks

    if options.pairs < 1:
        raise invalid("--pairs", options.pairs, "at least 1")
    folder = shared.resolve_folder(options, "benchmarks")
    files = prepare_benchmarks(folder, options.negopt, options.hpsv2, options.pairs, options.seed)
    for name, file in files.items():
        print(f"{file.rows:>6} rows: {folder.uri}/{name}")
