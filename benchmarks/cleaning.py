"""The effect of cleaning on texts that need none, such as plain sentences; each changed text can be shown.

    python -m benchmarks.cleaning tests/data/english/wordnet.txt.gz
    python -m benchmarks.cleaning my-captions.csv --shown 20

The file may be of any format that `prepare` reads.
"""

import argparse
from collections import Counter
from pathlib import Path

from pyarrow import fs

from datasets_prep.blocklist import find_blocking_terms
from datasets_prep.cleaning import SYNTAX, clean_with_changes
from datasets_prep.sources import PromptFile, read_tables


def texts_of(file: Path) -> list[str]:
    tables = read_tables(PromptFile(fs.LocalFileSystem(), str(file.absolute())), 10_000)
    return [text for table in tables for text in table["text"].drop_null().to_pylist() if text]


def changes(texts: list[str]) -> list[tuple[str, str, str]]:
    """Yield the syntax rules that changed a text, with the text before and after."""
    return [change for text in texts for change in clean_with_changes(text)[1] if change[0] in SYNTAX]


def blocked(texts: list[str]) -> list[tuple[str, str]]:
    """Yield the terms for which a text is blocked, and the text."""
    return [(" + ".join(found), text) for text in texts if (found := find_blocking_terms(text))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shown", type=int, default=0, help="number of changed texts, and of blocked ones, to print")
    options = parser.parse_args()
    texts = texts_of(options.file)
    changed, out = changes(texts), blocked(texts)
    print(f"{len(texts):,} texts")
    print(f"changed by a rule for syntax: {len(changed)} ({100 * len(changed) / len(texts):.3f} %)")
    for rule, count in Counter(rule for rule, _, _ in changed).most_common():
        print(f"  {rule}: {count}")
    print(f"blocked as sexual about minors: {len(out)} ({100 * len(out) / len(texts):.3f} %)")
    for terms, count in Counter(terms for terms, _ in out).most_common():
        print(f"  {terms}: {count}")
    for rule, before, after in changed[: options.shown]:
        print(f"{rule}: {before!r} -> {after!r}")
    for terms, text in out[: options.shown]:
        print(f"{terms}: {text!r}")


if __name__ == "__main__":
    main()
