"""Batches of images with a registered student: plan, resumption, rejected requests, S3 and killed workers."""

import io
import json
import shutil
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline import manifest, tracking
from pipeline.errors import StorageError, TransientError, UserError
from pipeline.generation import batch_generation
from pipeline.generation.batch_generation import generate_images, list_images
from pipeline.generation.generation_run import (
    BatchOptions,
    GenerationManifest,
    GenerationRun,
    ImageOptions,
    ModelReference,
    choose_chunk_size,
    open_run,
)
from pipeline.generation.generation_worker import GenerationWorker, WorkerConfig, decode_images, encode_images
from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest
from pipeline.generation.prompt_table import PromptRow, read_prompt_table
from pipeline.hashing import hash_bytes
from pipeline.registry import version_management
from pipeline.registry.version_cache import fetch_version
from pipeline.storage import Folder

NAME, MODEL = "nasa-tiny", "models:/nasa-tiny@champion"
ONE_LEVEL = 1  # of 255: batches of another size round differently
ROWS = [
    {"prompt": "a cat"},
    {"prompt": "a dog on a mat", "negative_prompt": "blurry", "seed": 5},
    {"prompt": "a bird", "negative_prompt": "a dog", "seed": 6, "scale": 0.9},
    {"prompt": "a cat", "negative_prompt": "a dog", "seed": 7, "method": "nag"},
    {"prompt": "a cat", "negative_prompt": "a dog", "seed": 8, "method": "cfg", "scale": 3.0},
]
OPTIONS = BatchOptions(images_per_prompt=3, batch_size=2, seed=1, cpus_per_worker=0.5)


@pytest.fixture
def registry(tmp_path, four_versions):
    """Return the URI of a registry in which version 3 is the champion."""
    shutil.copy(four_versions[0], tmp_path / "registry.db")
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return str(file)


@pytest.fixture(scope="module")
def whole(ray_cluster, four_versions, prompts, tmp_path_factory):
    """Return the folder of a run that nothing interrupted, its summary and what it printed."""
    folder = Folder.from_uri(tmp_path_factory.mktemp("whole"))
    return (folder, *make(f"sqlite:///{four_versions[0]}", prompts, folder))


def make(registry, prompts, folder, options=OPTIONS, model=MODEL, **more):
    lines = []
    summary = generate_images(model, [prompts], folder, options, registry, log=lines.append, **more)
    return summary, lines


def collect(folder):
    """Return the content of every file by its path."""
    return {entry.path.removeprefix(f"{folder.path}/"): folder.filesystem.open_input_stream(entry.path).read()
            for entry in folder.walk()}  # fmt: skip


def run_of(images, chunk, count=1):
    options = ImageOptions(images_per_prompt=count)
    return GenerationRun(
        model=MODEL, name=NAME, version="1", student_sha256="", prompts={}, options=options, images=images,
        images_per_chunk=chunk,
    )  # fmt: skip


def test_chunks_hold_every_image_once_with_consecutive_seeds():
    rows = [PromptRow("a.txt", number, ImageRequest(f"prompt {number}", 10 * number)) for number in (1, 2, 3)]
    run = run_of(12, 5, count=4)
    chunks = [list_images(run, rows, chunk) for chunk in range(run.num_chunks)]
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    images = [image for chunk in chunks for image in chunk]
    assert [image.image for image in images] == list(range(12))
    assert [(image.row, image.request.seed) for image in images] == [
        (row, 10 * row + n) for row in (1, 2, 3) for n in range(4)
    ]
    assert decode_images(encode_images(images)) == images


@pytest.mark.parametrize(
    ("images", "workers", "batch", "size"),
    [(100_000, 8, 16, 256), (200, 4, 16, 16), (200, 1, 16, 64), (3, 4, 16, 16), (100_000, 1, 100, 256)],
)
def test_a_chunk_is_small_enough_that_every_worker_has_some(images, workers, batch, size):
    assert choose_chunk_size(images, BatchOptions(num_workers=workers, batch_size=batch)) == size


@pytest.mark.parametrize("uri", ["nasa-tiny", "models:/nasa-tiny", "models:/nasa-tiny@", "models:/a/1x", "runs:/a/b"])
def test_a_model_needs_an_alias_or_a_version(uri):
    with pytest.raises(UserError, match=r"model: got '.*'; expected models:/NAME@ALIAS or models:/NAME/VERSION\."):
        ModelReference.parse(uri)


def test_images_are_those_of_the_generator_and_listed_with_what_made_them(whole, registry, prompts):
    folder, summary, lines = whole
    assert (summary.generated, summary.run.version) == (15, "3")
    assert lines[0] == "nasa-tiny version 3: 15 images, 0 of 4 chunks finished"
    version = fetch_version(registry, NAME, "3")
    generator = ImageGenerator(version.student, scale=version.scale)
    index = folder.read_table("index.parquet").to_pylist()
    assert [row["image"] for row in index] == list(range(15))
    defaults = {"negative_prompt": "", "seed": 1, "scale": None, "method": "nasa"}
    for row in index:
        values = {**defaults, **ROWS[row["row"] - 1]}
        request = ImageRequest(**{**values, "seed": values["seed"] + row["image"] % 3})
        if request.method == "nag":
            request = ImageRequest(request.prompt, request.seed, request.negative_prompt, 4.0, "nag")
        png = folder.read(row["path"])
        (expected,) = generator.generate([request])
        assert np.abs(np.asarray(Image.open(io.BytesIO(png))).astype(int) - expected).max() <= ONE_LEVEL
        assert (row["file"], row["prompt"], row["seed"]) == (prompts, request.prompt, request.seed)
        applied = 0.0 if not request.negative_prompt else version.scale if request.scale is None else request.scale
        assert (row["scale"], row["method"], row["version"]) == (applied, request.method, "3")
        assert row["sha256"] == hash_bytes(png)
    assert len({row["sha256"] for row in index}) == 15
    finished = manifest.read(folder, GenerationManifest)
    assert finished.index.sha256 == hash_bytes(folder.read("index.parquet"))
    before = collect(folder)
    summary, _ = make(registry, prompts, folder)
    assert str(summary) == "already generated: 15 images"
    assert collect(folder) == before


def test_an_interrupted_run_ends_with_the_same_bytes_though_the_champion_changed(whole, registry, prompts, tmp_path):
    whole, cut = whole[0], Folder.from_uri(tmp_path / "cut")
    shutil.copytree(whole.path, cut.path)
    for name in ("manifest.json", "index.parquet", "index/000001.parquet", "index/000003.parquet"):
        cut.remove(name)
    cut.remove("images/000001/000000005.png")
    for name in ("run.json.1.partial", "images/000001/000000004.png.2.partial", "index/000001.parquet.3.partial"):
        cut.write(name, b"half")
    version_management.promote(registry, NAME, "4")
    finished = (tmp_path / "cut/images/000000/000000000.png").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"model: got 'models:/nasa-tiny/4'; expected .*nasa-tiny/3'"):
        make(registry, prompts, cut, model="models:/nasa-tiny/4")
    summary, lines = make(registry, prompts, cut, BatchOptions(**{**OPTIONS.model_dump(), "num_workers": 2}))
    assert (summary.generated, summary.run.version) == (7, "3")
    assert lines[0].endswith("15 images, 2 of 4 chunks finished")
    assert collect(cut) == collect(whole)
    assert (tmp_path / "cut/images/000000/000000000.png").stat().st_mtime_ns == finished


@pytest.mark.slow
def test_prompts_and_images_may_be_on_s3(whole, registry, prompts, bucket):
    local, remote = whole[0], Folder.from_uri(f"{bucket}/out")
    with open(prompts, "rb") as file:
        Folder.from_uri(bucket).write("prompts.jsonl", file.read())
    make(registry, f"{bucket}/prompts.jsonl", remote)
    images = {name: content for name, content in collect(local).items() if name.endswith(".png")}
    written = collect(remote)
    assert {name: content for name, content in written.items() if name.endswith(".png")} == images
    names = {"index.parquet", "manifest.json", "run.json"} | {f"index/00000{number}.parquet" for number in range(4)}
    assert {name for name in written if name not in images} == names


def find_workers():
    """Return the actors' processes, which Ray names after their class; all are below this process."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "GenerationWorker" in "".join(process.cmdline())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ray_address", [None, "auto"], ids=["this machine", "a cluster, where Ray restarts it"])
def test_a_killed_worker_is_replaced(ray_cluster, registry, tmp_path, ray_address):
    file, folder = tmp_path / "prompts.txt", Folder.from_uri(tmp_path / "out")
    file.write_text("\n".join(f"a cat number {number}" for number in range(200)))
    killed = []

    def kill():
        while not (folder / "index").list_files():
            time.sleep(0.01)
        (worker,) = find_workers()
        worker.kill()
        killed.append(len((folder / "index").list_files()))

    thread = threading.Thread(target=kill)
    thread.start()
    options = BatchOptions(batch_size=1, cpus_per_worker=0.5)
    _, lines = make(registry, str(file), folder, options, ray_address=ray_address)
    thread.join()
    assert killed[0] < 4, "it was killed before the end"
    assert ("a worker died; starting the workers again" in lines) == (ray_address is None)
    index = folder.read_table("index.parquet").to_pylist()
    assert [row["prompt"] for row in index] == file.read_text().splitlines()
    assert all(hash_bytes(folder.read(row["path"])) == row["sha256"] for row in index)


@pytest.fixture
def job(begun, registry, prompts):
    """Return the work of a run that made no image yet."""
    table = read_prompt_table([prompts], OPTIONS)
    run = open_run(begun, ModelReference.parse(MODEL), table.files, OPTIONS, registry)
    return batch_generation._Job(begun, run, table.rows, OPTIONS, registry, 0)


def test_workers_that_die_again_and_again_are_reported_in_one_line(job, monkeypatch):
    from ray.exceptions import RayActorError

    started = []

    def die(job, chunks):
        started.append(chunks)
        raise RayActorError
        yield

    monkeypatch.setattr(batch_generation, "_run_workers", die)
    with pytest.raises(TransientError, match=r"generate: workers died 4 times without finishing a chunk"):
        batch_generation._write_chunks(job, print)
    assert started == [[0, 1, 2, 3]] * 4


def test_images_on_another_machine_s_disk_are_reported_in_one_line(job, monkeypatch):
    monkeypatch.setattr(batch_generation, "_run_workers", lambda job, chunks: iter([4, 4, 4, 3]))
    with pytest.raises(UserError, match=r"out: got .*begun'; expected s3://, or a folder .*; 4 chunks are elsewhere"):
        batch_generation._write_chunks(job, print)


def test_a_chunk_is_not_in_the_index_before_its_last_image_is_written(registry, prompts, tmp_path, monkeypatch):
    folder, order = Folder.from_uri(tmp_path / "out"), []
    write = Folder.write

    def record(self, name, content):
        order.append(name)
        if len(order) == 4:
            raise OSError("disk full")
        write(self, name, content)

    monkeypatch.setattr(Folder, "write", record)
    worker = GenerationWorker(WorkerConfig(registry, NAME, "3", folder.uri, "float32", 2, 1.0, 0.0))
    rows = read_prompt_table([prompts], OPTIONS).rows
    images = list_images(run_of(5, 5), rows, 0)
    with pytest.raises(OSError, match="disk full"):
        worker.write_chunk(0, images)
    assert not (folder / "index").list_files()
    assert worker.write_chunk(0, images) == 5
    assert order[-1] == "000000.parquet"
    assert (folder / "index").list_files() == ["000000.parquet"]


@pytest.fixture
def begun(registry, prompts, tmp_path):
    """Return a folder with a run that made no image yet."""
    folder = Folder.from_uri(tmp_path / "begun")
    table = read_prompt_table([prompts], OPTIONS)
    open_run(folder, ModelReference.parse(MODEL), table.files, OPTIONS, registry)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "0.5"], "scale: got 0.5; expected None"),
        (["--seed", "2"], "seed: got 2; expected 1"),
        (["--negative-prompt", "red"], "negative_prompt: got 'red'; expected ''"),
        (["--images-per-prompt", "4"], "images_per_prompt: got 4; expected 3"),
        (["--dtype", "bfloat16"], "dtype: got 'bfloat16'; expected 'float32'"),
        (["--model", "models:/nasa-tiny/2"], "model: got 'models:/nasa-tiny/2'; expected '"),
        (["--model", "models:/nasa-tiny@challenger"], "model: got 'models:/nasa-tiny@challenger'; expected"),
        (["--prompts", "MORE"], "prompts: got '"),
    ],
)  # fmt: skip
def test_a_folder_is_not_continued_with_another_request(begun, registry, prompts, tmp_path, capsys, arguments, message):
    more = tmp_path / "more.txt"
    more.write_text("a cat")
    before = collect(begun)
    words = ["generate", "--model", MODEL, "--prompts", prompts, "--out", begun.uri, "--tracking-uri", registry]
    words += ["--seed", "1", "--images-per-prompt", "3", *(str(more) if word == "MORE" else word for word in arguments)]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {message}")
    assert error.endswith(f"as in {begun.uri}, which holds its images. Pass the same value, or another --out.")
    assert len(error.splitlines()) == 1
    assert collect(begun) == before


def test_a_changed_file_of_prompts_is_rejected(registry, tmp_path):
    file, folder = tmp_path / "own.txt", Folder.from_uri(tmp_path / "out")
    file.write_text("a cat")
    table = read_prompt_table([str(file)], OPTIONS)
    open_run(folder, ModelReference.parse(MODEL), table.files, OPTIONS, registry)
    file.write_text("a dog")
    with pytest.raises(UserError, match=r"prompts: .*own\.txt: sha256: got '\w{12}'; expected '\w{12}', as in"):
        make(registry, str(file), folder)


def test_a_version_that_was_replaced_is_rejected(begun, registry, prompts):
    tracking.build_client(registry).set_model_version_tag(NAME, "3", "student_sha256", "0" * 64)
    with pytest.raises(UserError, match=r"version 3: student_sha256: got '000000000000'; expected "):
        make(registry, prompts, begun)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nasa-tiny"], "model: got 'nasa-tiny'; expected models:/NAME@ALIAS or models:/NAME/VERSION."),
        (["--model", "models:/absent@champion"], "name: got 'absent'; expected a registered model: nasa-tiny"),
        (["--model", "models:/nasa-tiny@best"], "alias: got 'best'; expected an alias of nasa-tiny: challenger"),
        (["--model", "models:/nasa-tiny/9"], "version: got '9'; expected a version of nasa-tiny: 1, 2, 3, 4."),
        (["--batch-size", "0"], "batch_size: got 0; expected a number at least 1."),
        (["--num-workers", "0"], "num_workers: got 0; expected a number at least 1."),
        (["--images-per-prompt", "0"], "images_per_prompt: got 0; expected a number at least 1."),
        (["--scale", "nan"], "scale: got nan; expected a finite number."),
        (["--method", "sag"], "method: got 'sag'; expected 'nasa', 'nag', 'vsf' or 'cfg'."),
        (["--dtype", "int8"], "dtype: got 'int8'; expected 'float32' or 'bfloat16'."),
        (["--prompts", "gone.txt"], "gone.txt: no such file"),
        (["--prompts", "EMPTY"], "empty.txt: got no rows; expected one prompt or more."),
        (["--out", "FILE"], "prompts.jsonl: cannot be listed: "),
        (["--out", "FULL"], "expected an empty or a new folder, but it holds 'other.txt'."),
    ],
)
def test_invalid_requests_are_reported_in_one_line_and_write_nothing(
    registry, prompts, tmp_path, capsys, arguments, message
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/other.txt").write_text("x")
    (tmp_path / "empty.txt").write_text("\n")
    names = {"EMPTY": f"{tmp_path}/empty.txt", "FULL": f"{tmp_path}/full", "FILE": prompts}
    words = ["generate", "--model", MODEL, "--out", f"{tmp_path}/out", "--tracking-uri", registry]
    words += [] if "--prompts" in arguments else ["--prompts", prompts]
    assert main([*words, *(names.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_version_that_is_not_what_was_registered_is_one_line(ray_cluster, registry, prompts, tmp_path, capsys):
    tracking.build_client(registry).set_model_version_tag(NAME, "3", "student_sha256", "0" * 64)
    words = ["generate", "--model", MODEL, "--prompts", prompts, "--out", f"{tmp_path}/out"]
    assert main([*words, "--tracking-uri", registry]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "is not what was registered" in error


def test_a_folder_that_cannot_be_written_is_one_line(registry, prompts, tmp_path):
    folder = Folder.from_uri(tmp_path / "out")
    folder.write("images", b"a file where the folder should be")
    worker = GenerationWorker(WorkerConfig(registry, NAME, "3", folder.uri, "float32", 2, 1.0, 0.0))
    images = list_images(run_of(5, 5), read_prompt_table([prompts], OPTIONS).rows, 0)
    with pytest.raises(StorageError, match=r"out/images/.*: cannot be ") as caught:
        worker.write_chunk(0, images)
    assert len(str(caught.value).splitlines()) == 1
