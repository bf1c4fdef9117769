"""Merge two students into one: a weighted mean of their weights."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="diffusers folder of a student, local or s3://")
    parser.add_argument("second", help="diffusers folder of a student of the same architecture")
    parser.add_argument(
        "--weight", type=float, default=0.5, help="weight of the second student, 0 to 1; the first gets 1 - weight"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the merged student")


def run(options: argparse.Namespace) -> None:
    from pipeline.storage import Folder
    from pipeline.training.merge_students import merge

    folder_hash = merge(options.first, options.second, options.weight, Folder.from_uri(options.out))
    print(f"merged, student {folder_hash[:12]}: {options.out}")
