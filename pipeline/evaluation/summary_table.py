"""The table of an evaluation's summary, for the terminal."""

from pipeline.evaluation.html_report import format_share
from pipeline.evaluation.results import Summary

SHARES = ("all_right", "clean", "clean_and_right")


def format_summary(summary: Summary) -> str:
    """Return the metrics of each system, the comparison with the teacher, and the exclusion test by method."""
    systems = summary.systems
    names = [name for name in SHARES if name in summary.metrics] or list(systems[summary.student])
    if not names:
        return "no metrics (evaluation.metrics is empty). Look at the images."
    lines = [f"{'mean over images':<44}" + "".join(f"{name.replace('_', ' '):>17}" for name in names)]
    for system, metrics in systems.items():
        figures = (_format_figure(name, metrics[name].value) if name in metrics else " " * 17 for name in names)
        lines.append(f"{system:<44}{''.join(figures)}")
    if summary.against_teacher:
        lines += ["", *_format_against_teacher(summary)]
    if summary.exclusion:
        lines += ["", *_format_exclusion(summary)]
    return "\n".join(lines)


def _format_figure(name: str, value: float) -> str:
    return f"{100 * value:>15.1f} %" if name in SHARES else f"{value:>17.3f}"


def _format_against_teacher(summary: Summary) -> list[str]:
    lines = [f"{'on the same prompts and seeds':<44}{'student':>17}{'teacher':>17}{'ratio':>17}"]
    for name, row in summary.against_teacher.items():
        shown = name.replace("_", " ")
        lines.append(f"{shown:<44}{row.student:>17.3f}{row.teacher:>17.3f}{row.ratio:>17.2f}")
    return lines


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
