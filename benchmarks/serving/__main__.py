"""The server of a registered model under load: speed against other ways to serve it, faults, and hostile requests.

    make demo && python -m benchmarks.serving speed
    python -m benchmarks.serving chaos --minutes 10
    python -m benchmarks.serving hostile --requests 10000

Each prints its rows and keeps them in the JSON file; `table` prints what is recorded. The server, its clients and what
it is compared with share the machine's cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.serving import chaos, hostile, speed
from benchmarks.serving.server import build_scratch_registry
from pipeline import ROOT, apply_environment
from pipeline.storage import Folder
from pipeline.tracking import get_default_uri

PARTS = {"speed": speed.measure, "chaos": chaos.measure, "hostile": hostile.measure}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "table"], help="what to measure; table prints the recorded results")
    parser.add_argument("--name", default="nasa-shapes", help="registered model with a champion (%(default)s)")
    parser.add_argument("--tracking-uri", help="MLflow's URI (default: as for `jobs`)")
    parser.add_argument("--rounds", type=int, default=5, help="speed: interleaved rounds (%(default)s)")
    parser.add_argument("--images", type=int, default=192, help="speed: images of a round (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="chaos: length (%(default)g)")
    parser.add_argument("--requests", type=int, default=10_000, help="hostile: requests (%(default)s)")
    parser.add_argument("--out", default=str(ROOT / "docs" / "data" / "serving.json"), help="JSON file of the results")
    options = parser.parse_args()
    file = Path(options.out)
    results = json.loads(file.read_text()) if file.is_file() else {}
    if options.part != "table":
        apply_environment()
        registry = build_scratch_registry(options.tracking_uri or get_default_uri(), options.name)
        results[options.part] = PARTS[options.part](registry, options)
        Folder.from_uri(file.parent).write(file.name, (json.dumps(results, indent=2) + "\n").encode())
    for part in PARTS if options.part == "table" else [options.part]:
        print(format_table(part, results.get(part, {})))


def format_table(part: str, rows: dict[str, Any]) -> str:
    """Return the rows of a part as a Markdown table."""
    lines = [f"| {name} | {_format_value(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {part} | |", "|---|---|", *lines, ""])


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_format_value(count)}" for key, count in value.items())
    if isinstance(value, list):
        return f"{len(value)} times, {min(value)} to {max(value)}" if len(value) > 4 else ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value}"


if __name__ == "__main__":
    main()
