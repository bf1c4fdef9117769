"""Score short videos with and without NASA by VBench's aesthetic and imaging quality."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="folder of a Wan pipeline with CausVid's weights"
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="output folder, local or s3://")
    shared.add_ray_address_option(parser)
    shared.add_override_options(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.evaluation.video_evaluation import evaluate_videos
    from pipeline.storage import Folder

    folder = Folder.from_uri(options.out)
    overrides = [f"model={options.model!r}", f"prompts={options.prompts!r}", *options.overrides]
    summary = evaluate_videos(overrides, folder, options.ray_address)
    for row in summary.metrics:
        print(
            f"{row.metric:<12}{summary.a} {row.a:.4f}  {summary.b} {row.b:.4f}  "
            f"{row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f}): {row.sentence}"
        )
    print(f"report: {folder.uri}/report.html")
