"""The stream of prompts on Ray Data, over sources of several shards and more than one epoch."""

from collections import Counter

import pytest

from pipeline.errors import UserError
from pipeline.prompts import prompt_dataset as reading
from pipeline.prompts import prompt_stream as stream_module
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest, read_shard
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.recipe import parse
from pipeline.storage import Folder

BATCH = 6
A, B = 41, 30  # prompts of each source; an epoch takes 20 of the second


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two sources, one of which has a share."""
    place = tmp_path_factory.mktemp("stream")
    (place / "a.txt").write_text("".join(f"a number {i}\n" for i in range(A)))
    (place / "b.txt").write_text("".join(f"b number {i}\n" for i in range(B)))
    sources = f"[{{path = '{place}/a.txt'}}, {{path = '{place}/b.txt', weight = 2}}]"
    folder = Folder.from_uri(place / "prompts")
    options = ["prompts.rows_per_shard=8", "prompts.near_duplicates=0", "prompts.negative_count=20"]
    prepare(parse("", [f"prompts.sources={sources}", *options]), folder)
    return folder


def sequence(folder, first, last, workers=1, seed=0):
    """The prompts of all workers, step by step."""
    record = load_manifest(folder)
    places = [range(rank * BATCH // workers, (rank + 1) * BATCH // workers) for rank in range(workers)]
    streams = [PromptStream(folder, record, seed, BATCH, own).iter_batches(first, last) for own in places]
    return [[prompt for part in step for prompt in part.prompts] for step in zip(*streams, strict=True)]


@pytest.fixture(scope="module")
def whole(ray_cluster, prepared):
    """Three epochs and a bit, in ranges that end within batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "RANGE_SIZE", 16)
        return sequence(prepared, 0, 37)


def test_every_prompt_comes_once_an_epoch_and_nothing_is_left_out(whole):
    every = [prompt for step in whole for prompt in step]
    assert len(every) == 37 * BATCH
    epoch = A + B
    for start in range(0, 3 * epoch, epoch):
        assert set(Counter(every[start : start + epoch]).values()) == {1}
    assert every[:epoch] != every[epoch : 2 * epoch]


@pytest.mark.parametrize(("first", "workers"), [(0, 2), (0, 4), (12, 1), (13, 3), (36, 1)])
def test_the_order_is_one_for_any_number_of_workers_and_any_start(ray_cluster, prepared, whole, first, workers):
    assert sequence(prepared, first, 37, workers) == whole[first:]


def test_another_seed_is_another_order(ray_cluster, prepared, whole):
    assert sequence(prepared, 0, 3, seed=1) != whole[:3]


def test_no_steps_are_no_batches(prepared):
    assert sequence(prepared, 5, 5) == []


def test_a_late_start_reads_its_own_shards_alone(prepared, monkeypatch):
    """The first span from the middle of an epoch on: as many reads as a start at 0."""
    record, reads = load_manifest(prepared), []
    monkeypatch.setattr(
        reading, "read_shard", lambda folder, name, sha: reads.append(name) or original(folder, name, sha)
    )
    stream = PromptStream(prepared, record, 0, BATCH, range(BATCH))
    stream.read_prompts(next(stream.sampler.iter_ranges(9 * BATCH, 10 * BATCH, 6)))
    assert 0 < len(reads) <= 4


original = read_shard


def test_a_shard_that_changed_is_named_when_it_is_read(ray_cluster, tmp_path):
    folder = Folder.from_uri(tmp_path / "prompts")
    prepare(parse("", ["prompts.count=20", "prompts.negative_draws=5"]), folder)
    record, name = load_manifest(folder), "shard-shapes-00000.parquet"
    content = bytearray(folder.read(name))
    content[10] ^= 1
    folder.write(name, bytes(content))
    stream = PromptStream(folder, load_manifest(folder), 0, 4, range(4))
    expected = f"^{folder.uri}/{name}: its content differs from the manifest's hash. Run `python"
    with pytest.raises(UserError, match=expected):
        next(stream.iter_batches(0, 2))
    assert record.files[name].bytes == len(content)


def test_the_stream_needs_no_free_core(ray_cluster, prepared):
    """As on a cluster whose workers have taken them all."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    free = ray.available_resources()["CPU"]
    taken = placement_group([{"CPU": free}])
    ray.get(taken.ready(), timeout=60)
    try:
        assert len(sequence(prepared, 0, 3)) == 3
    finally:
        remove_placement_group(taken)
