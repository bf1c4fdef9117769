"""The prompt stream on Ray Data, over sources of several shards and more than one epoch."""

from collections import Counter

import pytest

from pipeline.errors import UserError
from pipeline.prompts import prompt_dataset, prompt_stream
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest, read_shard
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.recipe import parse
from pipeline.storage import Folder

BATCH = 6
A, B = 41, 30  # prompts of each source; an epoch takes 20 of the second


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return prepared prompts of two sources, one of which has a quota."""
    root = tmp_path_factory.mktemp("stream")
    (root / "a.txt").write_text("".join(f"a number {i}\n" for i in range(A)))
    (root / "b.txt").write_text("".join(f"b number {i}\n" for i in range(B)))
    sources = f"[{{path = '{root}/a.txt'}}, {{path = '{root}/b.txt', weight = 2}}]"
    folder = Folder.from_uri(root / "prompts")
    options = ["prompts.rows_per_shard=8", "prompts.near_duplicates=0", "prompts.negative_count=20"]
    prepare(parse("", [f"prompts.sources={sources}", *options]), folder)
    return folder


def read_steps(folder, first, last, workers=1, seed=0):
    """Return the prompts of all workers, step by step."""
    record = load_manifest(folder)
    sample_indices = [range(rank * BATCH // workers, (rank + 1) * BATCH // workers) for rank in range(workers)]
    streams = [
        PromptStream(folder, record, seed, BATCH, indices).iter_batches(first, last) for indices in sample_indices
    ]
    return [[prompt for part in step for prompt in part.prompts] for step in zip(*streams, strict=True)]


@pytest.fixture(scope="module")
def all_steps(ray_cluster, prepared):
    """Return the prompts of three epochs and a bit, read in ranges that end within batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_stream, "RANGE_SIZE", 16)
        return read_steps(prepared, 0, 37)


def test_every_prompt_occurs_once_per_epoch(all_steps):
    prompts = [prompt for step in all_steps for prompt in step]
    assert len(prompts) == 37 * BATCH
    epoch = A + B
    for start in range(0, 3 * epoch, epoch):
        assert set(Counter(prompts[start : start + epoch]).values()) == {1}
    assert prompts[:epoch] != prompts[epoch : 2 * epoch]


@pytest.mark.parametrize(("first", "workers"), [(0, 2), (0, 4), (12, 1), (13, 3), (36, 1)])
def test_the_order_does_not_depend_on_the_workers_or_the_start(ray_cluster, prepared, all_steps, first, workers):
    assert read_steps(prepared, first, 37, workers) == all_steps[first:]


def test_another_seed_gives_another_order(ray_cluster, prepared, all_steps):
    assert read_steps(prepared, 0, 3, seed=1) != all_steps[:3]


def test_no_steps_give_no_batches(prepared):
    assert read_steps(prepared, 5, 5) == []


def test_a_late_start_reads_only_its_own_shards(prepared, monkeypatch):
    """A start in the middle of an epoch reads as few shards as a start at 0."""
    record, reads = load_manifest(prepared), []
    monkeypatch.setattr(
        prompt_dataset, "read_shard", lambda folder, name, sha: reads.append(name) or original(folder, name, sha)
    )
    stream = PromptStream(prepared, record, 0, BATCH, range(BATCH))
    stream.read_prompts(next(stream.sampler.iter_ranges(9 * BATCH, 10 * BATCH, 6)))
    assert 0 < len(reads) <= 4


original = read_shard


def test_a_changed_shard_is_reported_when_it_is_read(ray_cluster, tmp_path):
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
    """The training workers may have taken all cores of a cluster."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    cpus = ray.available_resources()["CPU"]
    reserved = placement_group([{"CPU": cpus}])
    ray.get(reserved.ready(), timeout=60)
    try:
        assert len(read_steps(prepared, 0, 3)) == 3
    finally:
        remove_placement_group(reserved)
