"""Benchmark prompts: the paper's pairs, a sample of NegOpt, and HPSv2's."""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from datasets_prep.cleaning import collapse_spaces

PAIRS_SCHEMA = pa.schema([("index", pa.int64()), ("prompt", pa.string()), ("negative_prompt", pa.string())])
STYLED_SCHEMA = pa.schema([("style", pa.string()), ("index", pa.int64()), ("prompt", pa.string())])

EXCLUSION_PAIRS = (  # Table 2 of arXiv 2412.02687; 100 images each
    ("A photo of a person", "male"),
    ("A photo of a person", "female"),
    ("A photo of a person", "young"),
    ("A photo of a person", "old"),
    ("A photo of a pet", "cat"),
    ("A photo of a pet", "dog"),
)
NEGATIVE_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "hpsv2": "worst quality, low quality, ugly, duplicate, out of frame, deformed, blurry, bad anatomy, watermark",
        "causvid": "low quality, bad anatomy, blurry, distortion, ugly, low resolution, unclear details",
    }
)
"""The negative prompts of the paper's evaluation, by benchmark."""

NEGOPT_PAIRS = 30_000
HPSV2_STYLES = ("anime", "concept-art", "paintings", "photo")
HPSV2_PROMPTS = 800  # per style


def build_exclusion_pairs() -> pa.Table:
    """Return the paper's pairs of prompt and negative prompt."""
    prompts, negatives = zip(*EXCLUSION_PAIRS, strict=True)
    return pa.table([range(len(prompts)), prompts, negatives], schema=PAIRS_SCHEMA)


def sample_pairs(pairs: Iterable[tuple[str | None, str | None]], count: int, seed: int) -> pa.Table:
    """Sample `count` distinct pairs of a prompt and a negative prompt without replacement.

    The sample depends on the seed, not on the order of `pairs`. The paper's own sample of NegOpt is not published.

    Raises:
        ValueError: if there are fewer.
    """
    distinct = sorted(
        {(collapse_spaces(a), collapse_spaces(b)) for a, b in pairs if a and b and a.strip() and b.strip()}
    )
    if len(distinct) < count:
        raise ValueError(f"got {len(distinct)} distinct pairs; expected at least {count}.")
    chosen = np.random.default_rng((seed, 40)).permutation(len(distinct))[:count]
    columns = zip(*(distinct[number] for number in chosen), strict=True)
    return pa.table([range(count), *columns], schema=PAIRS_SCHEMA)


def parse_styled_prompts(files: Mapping[str, bytes]) -> pa.Table:
    """Return HPSv2's benchmark from a JSON list of prompts for each style, by the style's name.

    Raises:
        ValueError: if a style is missing or not a list of 800 prompts.
    """
    rows = []
    for style in HPSV2_STYLES:
        if style not in files:
            raise ValueError(f"{style}.json: missing; expected {', '.join(f'{name}.json' for name in HPSV2_STYLES)}.")
        try:
            prompts = json.loads(files[style])
        except ValueError as error:
            raise ValueError(f"{style}.json is not valid JSON: {error}") from None
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"{style}.json: got other JSON; expected a list of prompts.")
        if len(prompts) != HPSV2_PROMPTS:
            raise ValueError(f"{style}.json: got {len(prompts)} prompts; expected {HPSV2_PROMPTS}.")
        rows += [{"style": style, "index": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    return pa.Table.from_pylist(rows, schema=STYLED_SCHEMA)
