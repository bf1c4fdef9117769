"""The data card: one HTML page that says what the prompts are, what was removed, and what it looked like."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader

from datasets_prep.cleaning_stats import SCORE_EDGES, TOKEN_EDGES
from datasets_prep.negative_corpus import split_terms

SHOWN = 10
SHOWN_TERMS = 30
Bars = list[tuple[str, int, float]]


def render(recipe: str, sources: Mapping[str, Mapping[str, Any]], negative_prompts: pa.Table) -> str:
    """Return the page of a manifest's `sources`, with samples of blocked texts; every text is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    count = negative_prompts.num_rows
    shown = [*range(min(SHOWN, count)), *range(max(SHOWN, count - SHOWN), count)]
    frequency = Counter(term for text in negative_prompts["negative_prompt"].to_pylist() for term in split_terms(text))
    frequent = frequency.most_common(SHOWN_TERMS)
    text: str = environment.get_template("data_card.html.j2").render(
        recipe=recipe,
        sources=sources,
        total=sum(source["prompts"] for source in sources.values()),
        epoch=sum(source["per_epoch"] for source in sources.values()),
        negatives=count,
        negative_prompts=negative_prompts.take(shown).to_pylist(),
        terms=_build_bars([term for term, _ in frequent], [times for _, times in frequent]),
        distributions={name: list(_build_distributions(source)) for name, source in sources.items()},
    )
    return text


def _build_distributions(source: Mapping[str, Any]) -> list[tuple[str, Bars]]:
    histograms = (("Tokens", source["tokens"], TOKEN_EDGES), ("Aesthetic score", source["scores"], SCORE_EDGES))
    return [(title, _build_bars(_format_ranges(edges), counts)) for title, counts, edges in histograms if sum(counts)]


def _format_ranges(edges: Sequence[float]) -> list[str]:
    return [*(f"{low:g} to below {high:g}" for low, high in pairwise(edges)), f"{edges[-1]:g} and more"]


def _build_bars(labels: Sequence[str], counts: Sequence[int]) -> Bars:
    """Return the bars of a histogram without empty ones; the longest is 100 wide."""
    longest = max(counts, default=1) or 1
    return [
        (label, count, round(100 * count / longest, 1)) for label, count in zip(labels, counts, strict=True) if count
    ]
