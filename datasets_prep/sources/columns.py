"""Recognition of a table's columns."""

from datasets_prep.sources.rows import COLUMNS


def columns_of(columns: list[str], chosen: str) -> dict[str, str]:
    """Return the names of a file's columns by their content."""
    by_lower = {name.lower(): name for name in reversed(columns)}
    found = {
        target: by_lower[name] for target, names in COLUMNS.items() for name in reversed(names) if name in by_lower
    }
    if chosen:
        found.pop("text", None)
        if chosen in columns:
            found["text"] = chosen
    return found


def no_column(chosen: str, names: list[str]) -> str:
    """Return the error of a column that is missing."""
    wanted = repr(chosen) if chosen else " or ".join(COLUMNS["text"])
    return f"file: no column {wanted}; it has {', '.join(names)[:200]}"
