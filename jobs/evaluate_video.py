"""Score short videos with and without NASA by VBench's aesthetic and imaging quality."""

import argparse

from jobs import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a Wan pipeline with CausVid's weights")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="one prompt a line")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="local or s3://")
    parser.add_argument("--address", metavar="ADDRESS", help="a Ray cluster (default: a local one)")
    shared.add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.evaluation.video import evaluate_videos
    from pipeline.storage import Folder

    folder = Folder.of(options.out)
    own = [f"model={options.model!r}", f"prompts={options.prompts!r}", *options.overrides]
    summary = evaluate_videos(own, folder, options.address)
    for row in summary["metrics"]:
        print(
            f"{row['metric']:<12}{summary['a']} {row['a']:.4f}  {summary['b']} {row['b']:.4f}  "
            f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}): {row['sentence']}"
        )
    print(f"report: {folder.uri}/report.html")
