"""Compare two evaluated students on the same prompts and seeds."""

import argparse
from pathlib import PurePosixPath


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of an evaluated run")
    parser.add_argument("other", metavar="OTHER", help="folder of the run to compare with")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the comparison (default: in RUN)")


def run(options: argparse.Namespace) -> None:
    from pipeline.evaluation.comparison import compare
    from pipeline.storage import Folder

    one, other = PurePosixPath(options.run), PurePosixPath(options.other)
    names = (one.name, other.name) if one.name != other.name else (str(one), str(other))
    folder = Folder.from_uri(options.out) if options.out else Folder.from_uri(options.run) / f"beside-{other.name}"
    comparison = compare(
        Folder.from_uri(options.run) / "evaluation", Folder.from_uri(options.other) / "evaluation", names, folder
    )
    for row in comparison.metrics:
        interval = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" if row.pairs else ""
        print(f"{row.metric:<20}{interval:<32}{row.sentence}")
    print(f"report: {folder.uri}/report.html")
