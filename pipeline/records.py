"""Configuration of the pydantic dataclasses that are read from JSON files."""

from pydantic import ConfigDict

STRICT = ConfigDict(strict=True, extra="forbid")
"""No implicit conversions, and no unknown fields."""
