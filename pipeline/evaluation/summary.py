"""The short table of what was achieved, for the terminal."""

from typing import Any

from pipeline.evaluation.report import percent


def table(summary: dict[str, Any]) -> str:
    """Accuracy of each system, then exclusion of each way; empty where there was no judge."""
    if "accuracy" not in summary:
        return "no judge for this teacher: see the pictures"
    columns = ("shape", "colour", "background", "all_right", "clean")
    lines = [f"{'what the images show':<44}" + "".join(f"{name.replace('_', ' '):>12}" for name in columns)]
    for row in summary["accuracy"]:
        lines.append(f"{row['system']:<44}" + "".join(f"{100 * row[name]['value']:>10.1f} %" for name in columns))
    lines.append("")
    lines.append(f"{'negative prompt, seeds that show the attribute':<48}{'removed':>24}{'kept':>24}")
    for row in summary["exclusion"]:
        seen = "" if row["trained_negative"] else " (never trained on)"
        lines.append(f"{row['way'] + seen:<48}{percent(row['removed']):>24}{percent(row['kept']):>24}")
    gain = summary["student_minus_teacher_one_step"]
    lines.append("")
    lines.append(
        f"student minus teacher, both in one step, all right: {100 * gain['difference']:+.1f} points "
        f"({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    )
    return "\n".join(lines)
