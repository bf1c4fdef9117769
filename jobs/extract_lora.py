"""Extract a LoRA from a student whose weights are all trained: its difference from its teacher, by SVD."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", help="diffusers folder of a student, local or s3://")
    parser.add_argument("teacher", help="folder, s3:// or hub id of the pipeline that the LoRA will be loaded into")
    parser.add_argument("--rank", type=int, default=64, help="largest rank of a layer's adapter (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder of the LoRA")


def run(options: argparse.Namespace) -> None:
    from pipeline.models import LORA_FILE
    from pipeline.storage import Folder
    from pipeline.training.extract_lora import extract

    record = extract(options.student, options.teacher, options.rank, Folder.from_uri(options.out))
    print(f"LoRA of rank {record.rank}, {len(record.layers)} layers: {options.out}/{LORA_FILE}")
    print(f"relative error of the layers: {record.relative_error:.3g}")
    print(f"largest error of a layer: {record.worst_error:.3g}, {record.worst_layer}")
    print(f"relative error with biases, norms and tables, which no LoRA holds: {record.total_relative_error:.3g}")
    print(f"their share of the difference: {record.omitted_share:.3g}")
