"""Merge two students into one: a weighted mean of their weights."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="a student's diffusers folder, local or s3://")
    parser.add_argument("second", help="another, of the same form")
    parser.add_argument("--weight", type=float, default=0.5, help="of the second; the first has the rest")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write the merged student")


def run(options: argparse.Namespace) -> None:
    from pipeline.storage import Folder
    from pipeline.training.merge import merge

    folder_hash = merge(options.first, options.second, options.weight, Folder.from_uri(options.out))
    print(f"merged, student {folder_hash[:12]}: {options.out}")
