"""The table of an evaluation's summary, for the terminal."""

from pipeline.evaluation.html_report import format_share
from pipeline.evaluation.results import Summary

SHARES = ("shape", "colour", "background", "all_right", "clean")


def format_summary(summary: Summary) -> str:
    """Return the metrics of each system, then the exclusion test by method."""
    systems = summary.systems
    names = [name for name in SHARES if name in summary.metrics] or list(systems[summary.student])
    if not names:
        return "no metrics (evaluation.metrics is empty). Look at the images."
    lines = [f"{'mean over images':<44}" + "".join(f"{name.replace('_', ' '):>12}" for name in names)]
    for system, metrics in systems.items():
        lines.append(f"{system:<44}" + "".join(_format_figure(name, metrics[name].value) for name in names))
    if summary.exclusion:
        lines += ["", *_format_exclusion(summary)]
    return "\n".join(lines)


def _format_figure(name: str, value: float) -> str:
    return f"{100 * value:>10.1f} %" if name in SHARES else f"{value:>12.3f}"


def _format_exclusion(summary: Summary) -> list[str]:
    lines = [f"{'negative prompt, seeds that show the attribute':<48}{'removed':>24}{'kept':>24}"]
    for row in summary.exclusion:
        note = "" if row.trained_negative else " (never trained on)"
        lines.append(f"{row.sampling_method + note:<48}{format_share(row.removed):>24}{format_share(row.kept):>24}")
    gain = summary.student_minus_teacher_one_step
    if gain is None:
        return lines
    return [
        *lines,
        "",
        f"student minus teacher, both in one step, all right: {100 * gain.difference:+.1f} points "
        f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
    ]
