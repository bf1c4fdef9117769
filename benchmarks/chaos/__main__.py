"""Run chaos scenarios in turn, those with the fewest results first, and print the table of all results."""

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

from benchmarks.chaos.harness import Harness
from benchmarks.chaos.scenarios import SCENARIOS, run_scenario
from pipeline import ROOT, manifest

DEFAULT_SECONDS = 300.0  # of a scenario without results
RESULTS = ROOT / "runs" / "chaos.jsonl"
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=58, help="time limit; nothing that may exceed it is started (%(default)g)"
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="scenario to run; may be repeated")
    parser.add_argument("--runs", type=int, help="number of runs of each scenario in this call (default: no limit)")
    parser.add_argument("--times", type=int, default=5, help="most faults injected into one run (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines file of results")
    parser.add_argument("--seed", type=int, help="random seed of the moments (default: a new one each time)")
    parser.add_argument("--table", action="store_true", help="print the recorded results and run nothing")
    options = parser.parse_args()
    if not options.table:
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        _run(options.only or list(SCENARIOS), options.minutes, options.runs, options.times, options.results, seed)
    rows = _read(options.results)
    print(format_table(rows))
    return int(any(not row["same"] for row in rows))


def _run(names: list[str], minutes: float, runs: int | None, times: int, results: Path, seed: int) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    for stop_signal in (signal.SIGINT, signal.SIGTERM):  # so that the cluster is stopped too
        signal.signal(stop_signal, lambda *_: sys.exit("interrupted"))
    deadline, code = time.monotonic() + 60 * minutes, manifest.get_code_version()
    harness = Harness(Path(tempfile.mkdtemp(prefix="chaos-")), seed, times)
    print(f"undisturbed: {harness.seconds:.0f} s, student {harness.expected[:12]}; seed {seed}", flush=True)
    done = dict.fromkeys(names, 0)
    try:
        while True:
            rows = _read(results)
            left = [name for name in names if runs is None or done[name] < runs]
            left = [name for name in left if time.monotonic() + longest_seconds(rows, name) < deadline]
            if not left:
                return
            name = min(left, key=lambda name: count_injections(rows, name) / SCENARIOS[name][1])
            start = time.monotonic()
            passed, notes = run_scenario(name, harness)
            done[name] += 1
            row = {"scenario": name, "same": passed, "notes": notes, "seconds": round(time.monotonic() - start, 1)}
            row |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "code": code, "seed": seed}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{name:26} {'passed' if passed else 'FAILED'} in {row['seconds']:.0f} s: {'; '.join(notes)}",
                flush=True,
            )
    finally:
        harness.close()


def _read(results: Path) -> list[Row]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def count_injections(rows: list[Row], name: str) -> int:
    """Return the number of faults injected by a scenario."""
    return sum(len(row["notes"]) for row in rows if row["scenario"] == name)


def longest_seconds(rows: list[Row], name: str) -> float:
    """Return the seconds of the longest run of a scenario, or the default if it never ran."""
    return max((float(row["seconds"]) for row in rows if row["scenario"] == name), default=DEFAULT_SECONDS)


def format_table(rows: list[Row]) -> str:
    """Return a Markdown table: for each scenario its injections, runs, passed runs and times."""
    lines = ["| scenario | injections | runs | passed | median s | longest s |", "|---|---|---|---|---|---|"]
    for name in SCENARIOS:
        runs = [row for row in rows if row["scenario"] == name]
        seconds = [row["seconds"] for row in runs]
        times = f"{statistics.median(seconds):.0f} | {max(seconds):.0f}" if seconds else "- | -"
        passed = sum(row["same"] for row in runs)
        lines.append(f"| {name} | {count_injections(rows, name)} | {len(runs)} | {passed} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
