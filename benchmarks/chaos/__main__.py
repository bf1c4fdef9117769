"""Runs scenarios in turn, those with the fewest results first, and prints the table of all results."""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.chaos.scenarios import SCENARIOS, harm
from benchmarks.chaos.world import World
from pipeline import ROOT, manifest

GUESS_SECONDS = 300.0
RESULTS = ROOT / "runs" / "chaos.jsonl"
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=58, help="begin nothing that may take longer (%(default)g)")
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="may come again")
    parser.add_argument("--runs", type=int, help="of each scenario, in this call")
    parser.add_argument(
        "--times", type=int, default=5, help="harm is done in one run, if it lasts so long (%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, help="of the moments (default: another each time)")
    parser.add_argument("--table", action="store_true", help="of the results that are there")
    options = parser.parse_args()
    if not options.table:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        _go(options.only or list(SCENARIOS), options.minutes, options.runs, options.times, options.results, seed)
    rows = _read(options.results)
    print(table(rows))
    return int(any(not row["same"] for row in rows))


def _go(names: list[str], minutes: float, runs: int | None, times: int, results: Path, seed: int) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    for ending in (signal.SIGINT, signal.SIGTERM):  # the cluster is ended too
        signal.signal(ending, lambda *_: sys.exit("ended before its time"))
    until, code = time.monotonic() + 60 * minutes, manifest.code_version()
    world = World(Path(tempfile.mkdtemp(prefix="chaos-")), seed, times)
    print(f"undisturbed: {world.took:.0f} s, student {world.expected[:12]}; seed {seed}", flush=True)
    done = dict.fromkeys(names, 0)
    try:
        while True:
            rows = _read(results)
            left = [name for name in names if runs is None or done[name] < runs]
            left = [name for name in left if time.monotonic() + longest(rows, name) < until]
            if not left:
                return
            name = min(left, key=lambda name: count(rows, name) / SCENARIOS[name][1])
            start = time.monotonic()
            same, notes = harm(name, world)
            done[name] += 1
            row = {"scenario": name, "same": same, "notes": notes, "seconds": round(time.monotonic() - start, 1)}
            row |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "code": code, "seed": seed}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            ended = "as it must" if same else "NOT AS IT MUST"
            print(f"{name:26} {ended} in {row['seconds']:.0f} s: {'; '.join(notes)}", flush=True)
    finally:
        world.close()


def _read(results: Path) -> list[Row]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def count(rows: list[Row], name: str) -> int:
    """How often the harm was done."""
    return sum(len(row["notes"]) for row in rows if row["scenario"] == name)


def longest(rows: list[Row], name: str) -> float:
    """Return the longest run in seconds, or a guess."""
    return max((float(row["seconds"]) for row in rows if row["scenario"] == name), default=GUESS_SECONDS)


def table(rows: list[Row]) -> str:
    """Markdown: of each scenario how often harm was done, in how many runs, how many of them ended as they must."""
    lines = ["| what is harmed | times | runs | as they must | median s | longest s |", "|---|---|---|---|---|---|"]
    for name in SCENARIOS:
        own = [row for row in rows if row["scenario"] == name]
        seconds = [row["seconds"] for row in own]
        took = f"{statistics.median(seconds):.0f} | {max(seconds):.0f}" if seconds else "- | -"
        lines.append(f"| {name} | {count(rows, name)} | {len(own)} | {sum(row['same'] for row in own)} | {took} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
