"""Real captions end to end: two files of emoji captions are prepared and streamed for one epoch."""

from pathlib import Path

import pytest

from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.recipe import parse
from pipeline.storage import Folder

DATA = Path(__file__).parents[1] / "data/emoji"
BATCH = 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = Folder.from_uri(tmp_path_factory.mktemp("emoji") / "prompts")
    sources = f"[{{path='{DATA}'}}]"
    overrides = ["prompts.filters.language=en", "prompts.rows_per_shard=500", "prompts.negative_count=200"]
    return folder, prepare(parse("", [f"prompts.sources={sources}", *overrides]), folder)


def test_english_is_kept_and_german_is_removed(prepared):
    _, record = prepared
    source = record.sources["emoji"]
    assert source.rows == 1949 + 300
    assert source.removed.pop("sexual terms about minors") == 1  # "breast-feeding, baby": a false positive
    assert set(source.removed) == {"language", "near duplicate"}  # "keycap: *" and "keycap: #" are not duplicates
    assert source.rows == source.prompts + sum(source.removed.values()) + 1
    assert 300 <= source.removed["language"] <= 300 + 10


def test_near_duplicates_are_removed(prepared):
    """Captions of men and women who do the same thing are near duplicates."""
    removed = prepared[1].sources["emoji"].removed
    assert 0 < removed["near duplicate"] < 400


def test_an_epoch_has_every_caption_once(ray_cluster, prepared):
    folder, record = prepared
    steps = -(-record.epoch // BATCH)
    stream = PromptStream(folder, load_manifest(folder), 0, BATCH, range(BATCH)).iter_batches(0, steps)
    prompts = [text for batch in stream for text in batch.prompts]
    assert len(prompts) == steps * BATCH
    assert len(set(prompts[: record.epoch])) == record.epoch == record.prompts
    assert set(prompts[record.epoch :]) <= set(prompts)
