"""Images for files of prompts, made by Ray Data actors; the same command resumes."""

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import RayActorError
from ray.util.annotations import RayDeprecationWarning

from pipeline import manifest
from pipeline.errors import TransientError, invalid
from pipeline.generation.generation_layout import INDEX, INDEX_FILE, name_index_piece, remove_partial_files
from pipeline.generation.generation_report import GenerationSummary, Log, Progress
from pipeline.generation.generation_run import (
    BatchOptions,
    GenerationManifest,
    GenerationRun,
    ModelReference,
    list_missing_chunks,
    open_run,
)
from pipeline.generation.generation_worker import BatchImage, GenerationWorker, WorkerConfig, encode_images
from pipeline.generation.image_request import offset_seed
from pipeline.generation.prompt_table import PromptRow, read_prompt_table
from pipeline.hashing import hash_bytes
from pipeline.manifest import DataFile
from pipeline.ray_session import start_ray_session
from pipeline.remote_errors import iter_rows
from pipeline.resource_requests import TIMEOUT_MINUTES, ResourceRequest, build_ray_resources, wait_for_resources
from pipeline.storage import Folder

MAX_RESTARTS = 3  # of one actor on a cluster, and of all actors without a finished chunk between
READERS = 16


def generate_images(
    model: str,
    prompts: Sequence[str],
    folder: Folder,
    options: BatchOptions,
    tracking_uri: str,
    ray_address: str | None = None,
    log: Log = print,
) -> GenerationSummary:
    """Write the images of all prompts, their index and the manifest.

    Chunks that are in the folder's index are not made again. The version that the model's alias names at the start is
    used to the end, and when the command is resumed.

    Raises:
        UserError: The model, a row or an option is not accepted, or the folder holds other images.
        StorageError: The folder cannot be written, or MLflow does not answer.
    """
    started = time.monotonic()
    reference, table = ModelReference.parse(model), read_prompt_table(prompts, options)
    run = open_run(folder, reference, table.files, options, tracking_uri)
    if folder.exists(manifest.NAME):
        return GenerationSummary(manifest.read(folder, GenerationManifest).run, 0, 0.0)
    missing = list_missing_chunks(folder, run)
    log(
        f"{run.name} version {run.version}: {run.images} images, "
        f"{run.num_chunks - len(missing)} of {run.num_chunks} chunks finished"
    )
    if missing:
        with start_ray_session(ray_address):
            _wait_for_workers(options, len(missing), ray_address, log)
            restarts = MAX_RESTARTS if ray_address else 0  # Ray logs a warning at each start if it is more
            _write_chunks(_Job(folder, run, table.rows, options, tracking_uri, restarts), log)
    _finish(folder, run)
    generated = sum(len(run.list_chunk(chunk)) for chunk in missing)
    return GenerationSummary(run, generated, time.monotonic() - started)


def _wait_for_workers(options: BatchOptions, chunks: int, ray_address: str | None, log: Log) -> None:
    resources = build_ray_resources(options.cpus_per_worker, options.gpus_per_worker)
    count = 1 if ray_address else min(options.num_workers, chunks)  # a cluster may grow later
    wait_for_resources(ResourceRequest("", "worker", count, resources), TIMEOUT_MINUTES, ray_address, log)


def list_images(run: GenerationRun, rows: Sequence[PromptRow], chunk: int) -> list[BatchImage]:
    """Return the images of a chunk; the images of one prompt follow each other."""
    count, images = run.options.images_per_prompt, []
    for image in run.list_chunk(chunk):
        row = rows[image // count]
        request = replace(row.request, seed=offset_seed(row.request.seed, image % count))
        images.append(BatchImage(image, row.file, row.row, request))
    return images


@dataclass(frozen=True)
class _Job:
    """Plain data of the work to be done; `max_restarts` is how often Ray starts one worker again."""

    folder: Folder
    run: GenerationRun
    rows: Sequence[PromptRow]
    options: BatchOptions
    tracking_uri: str
    max_restarts: int

    def list_missing_chunks(self) -> list[int]:
        return list_missing_chunks(self.folder, self.run)

    def build_config(self) -> WorkerConfig:
        return WorkerConfig(
            self.tracking_uri,
            self.run.name,
            self.run.version,
            self.folder.uri,
            self.run.options.dtype,
            self.options.batch_size,
            self.options.cpus_per_worker,
            self.options.gpus_per_worker,
        )


def _write_chunks(job: _Job, log: Log) -> None:
    """Write the missing chunks; start all workers again if one died more often than Ray starts it."""
    missing, failures = job.list_missing_chunks(), 0
    progress = Progress(sum(len(job.run.list_chunk(chunk)) for chunk in missing), log)
    while missing:
        try:
            for count in _run_workers(job, missing):
                progress.add(count)
        except RayActorError as error:
            failures = failures + 1 if len(job.list_missing_chunks()) == len(missing) else 0
            if failures > MAX_RESTARTS:
                raise TransientError(
                    f"generate: workers died {failures} times without finishing a chunk ({type(error).__name__}), "
                    "perhaps for want of memory. Lower --batch-size or --num-workers."
                ) from None
            log("a worker died; starting the workers again")
        else:
            _require_visible(job)
        missing = job.list_missing_chunks()


def _require_visible(job: _Job) -> None:
    """Reject a folder in which the workers' files do not appear, such as one of each node's own disk."""
    if missing := job.list_missing_chunks():
        expected = f"s3://, or a folder that this machine shares with all workers; {len(missing)} chunks are elsewhere"
        raise invalid("out", job.folder.uri, expected)


def _run_workers(job: _Job, chunks: Sequence[int]) -> Iterator[int]:
    """Yield the number of images of each chunk as it is finished."""
    items = [{"chunk": chunk, "images": encode_images(list_images(job.run, job.rows, chunk))} for chunk in chunks]
    retries: dict[str, Any] = {"max_restarts": job.max_restarts} | (
        {"max_task_retries": MAX_RESTARTS} if job.max_restarts else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # the deprecation of max_restarts
        stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            GenerationWorker,
            fn_constructor_args=(job.build_config(),),
            batch_size=1,
            num_cpus=job.options.cpus_per_worker,
            num_gpus=job.options.gpus_per_worker,
            concurrency=min(job.options.num_workers, len(items)),
            **retries,
        )
    for finished in iter_rows(stream):
        yield int(finished["images"])


def _finish(folder: Folder, run: GenerationRun) -> None:
    """Write the whole index, then the manifest."""
    with ThreadPoolExecutor(READERS) as readers:
        names = [name_index_piece(chunk) for chunk in range(run.num_chunks)]
        table = pa.concat_tables(readers.map((folder / INDEX).read_table, names))
    assert table.num_rows == run.images
    content = folder.write_table(INDEX_FILE, table)
    index = DataFile(rows=table.num_rows, bytes=len(content), sha256=hash_bytes(content))
    remove_partial_files(folder)
    remove_partial_files(folder / INDEX)
    manifest.write(folder, GenerationManifest(run=run, index=index))
