"""Recognition of the columns of a table."""

from datasets_prep.sources.raw_prompt_schema import COLUMNS


def find_columns(columns: list[str], chosen: str) -> dict[str, str]:
    """Return the names of a file's columns by the field of `SCHEMA` that they hold."""
    by_lower = {name.lower(): name for name in reversed(columns)}
    names_by_field = {
        target: by_lower[name] for target, aliases in COLUMNS.items() for name in reversed(aliases) if name in by_lower
    }
    if chosen:
        names_by_field.pop("text", None)
        if chosen in columns:
            names_by_field["text"] = chosen
    return names_by_field


def describe_missing_column(chosen: str, names: list[str]) -> str:
    """Return the problem of a table without the column of prompts."""
    wanted = repr(chosen) if chosen else " or ".join(COLUMNS["text"])
    return f"file: no column {wanted}; it has {', '.join(names)[:200]}"
