"""False positives of cleaning: how many texts the syntax rules change and the term filter blocks.

    python -m benchmarks.cleaning tests/data/english/wordnet.txt.gz
    python -m benchmarks.cleaning my-captions.csv --show 20

The file may have any format that `prepare` reads.
"""

import argparse
from collections import Counter
from pathlib import Path

from pyarrow import fs

from datasets_prep.blocklist import find_blocking_terms
from datasets_prep.cleaning import SYNTAX, clean_with_changes
from datasets_prep.sources import PromptFile, read_tables


def read_texts(file: Path) -> list[str]:
    tables = read_tables(PromptFile(fs.LocalFileSystem(), str(file.absolute())), 10_000)
    return [text for table in tables for text in table["text"].drop_null().to_pylist() if text]


def find_changes(texts: list[str]) -> list[tuple[str, str, str]]:
    """Return the changes by syntax rules: rule, text before, text after."""
    return [change for text in texts for change in clean_with_changes(text)[1] if change[0] in SYNTAX]


def find_blocked(texts: list[str]) -> list[tuple[str, str]]:
    """Return the blocked texts, each with the terms that it matched."""
    return [(" + ".join(terms), text) for text in texts if (terms := find_blocking_terms(text))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--show", type=int, default=0, help="number of changed texts, and of blocked ones, to print")
    options = parser.parse_args()
    texts = read_texts(options.file)
    changed, blocked = find_changes(texts), find_blocked(texts)
    print(f"{len(texts):,} texts")
    print(f"changed by a syntax rule: {len(changed)} ({100 * len(changed) / len(texts):.3f} %)")
    for rule, count in Counter(rule for rule, _, _ in changed).most_common():
        print(f"  {rule}: {count}")
    print(f"blocked as sexual about minors: {len(blocked)} ({100 * len(blocked) / len(texts):.3f} %)")
    for terms, count in Counter(terms for terms, _ in blocked).most_common():
        print(f"  {terms}: {count}")
    for rule, before, after in changed[: options.show]:
        print(f"{rule}: {before!r} -> {after!r}")
    for terms, text in blocked[: options.show]:
        print(f"{terms}: {text!r}")


if __name__ == "__main__":
    main()
