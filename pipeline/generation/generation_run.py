"""The record of a batch generation in its folder, which a second command resumes or is rejected by.

`run.json` is in the folder from the start, `manifest.json` when it is complete.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline import manifest, tracking
from pipeline.errors import UserError, invalid
from pipeline.generation.generation_layout import INDEX, PARTIAL, name_index_piece
from pipeline.generation.prompt_table import RowDefaults
from pipeline.manifest import DataFile, Manifest
from pipeline.registry import mlflow_registry
from pipeline.registry.version_cache import find_version
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

MAX_CHUNK = 256
CHUNKS_PER_WORKER = 4  # at least, if there are enough images
MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class ImageOptions(RowDefaults):
    """Options that decide what the images are."""

    images_per_prompt: Annotated[int, Field(ge=1, le=100_000)] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"


class BatchOptions(ImageOptions):
    """Options of a command; those of its workers may differ when it is resumed."""

    num_workers: Annotated[int, Field(ge=1)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16

    @property
    def image_options(self) -> ImageOptions:
        """The options that decide what the images are."""
        return ImageOptions(**{name: getattr(self, name) for name in ImageOptions.model_fields})


class GenerationRun(StrictModel):
    """`run.json`: the model's version, which stays the same when its alias moves, the files of prompts, and options."""

    model: str
    name: str
    version: str
    student_sha256: str
    prompts: dict[str, DataFile]
    options: ImageOptions
    images: int
    images_per_chunk: int

    @property
    def num_chunks(self) -> int:
        """The number of chunks."""
        return -(-self.images // self.images_per_chunk)

    def list_chunk(self, chunk: int) -> range:
        """Return the numbers of a chunk's images."""
        first = chunk * self.images_per_chunk
        return range(first, min(first + self.images_per_chunk, self.images))


class GenerationManifest(Manifest):
    """The manifest of complete images."""

    command = "generate"
    kind: Literal["generate"] = "generate"
    run: GenerationRun
    index: DataFile


@dataclass(frozen=True)
class ModelReference:
    """A registered model's version, by its number or an alias."""

    uri: str
    name: str
    alias: str | None
    version: str | None

    @staticmethod
    def parse(uri: str) -> "ModelReference":
        """Return the parts of an MLflow model URI."""
        if not (match := MODEL.fullmatch(uri)):
            raise invalid("model", uri, "models:/NAME@ALIAS or models:/NAME/VERSION")
        return ModelReference(uri, **match.groupdict())


def open_run(
    folder: Folder, model: ModelReference, prompts: dict[str, DataFile], options: BatchOptions, tracking_uri: str
) -> GenerationRun:
    """Return the run that a folder was begun with, or begin one.

    Raises:
        UserError: The folder holds another run or other files; or there is no such version, or it has changed.
        StorageError: The folder cannot be written, or MLflow does not answer.
    """
    if folder.exists(manifest.RUN_FILE):
        values = folder.read_json(manifest.RUN_FILE)
        begun = GenerationRun.from_values(values, f"{folder.uri}/{manifest.RUN_FILE}")
        _require_same(folder, begun, model, prompts, options)
        _require_same_student(folder, begun, tracking_uri)
        return begun
    _require_empty(folder)
    run = _build_run(model, prompts, options, tracking_uri)
    folder.write_json(manifest.RUN_FILE, run.to_dict())
    return run


def list_missing_chunks(folder: Folder, run: GenerationRun) -> list[int]:
    """Return the numbers of the chunks that are not in the index."""
    finished = set((folder / INDEX).list_files())
    return [number for number in range(run.num_chunks) if name_index_piece(number) not in finished]


def choose_chunk_size(images: int, options: BatchOptions) -> int:
    """Return the images of a chunk: enough that its index costs little, few enough that all workers have some."""
    share = -(-images // (options.num_workers * CHUNKS_PER_WORKER))
    batches = -(-share // options.batch_size)
    return min(MAX_CHUNK, batches * options.batch_size)


def _build_run(
    model: ModelReference, prompts: dict[str, DataFile], options: BatchOptions, tracking_uri: str
) -> GenerationRun:
    number = model.version or find_version(tracking_uri, model.name, model.alias or "")
    images = sum(file.rows for file in prompts.values()) * options.images_per_prompt
    return GenerationRun(
        model=model.uri,
        name=model.name,
        version=number,
        student_sha256=_read_student_hash(tracking_uri, model.name, number),
        prompts=prompts,
        options=options.image_options,
        images=images,
        images_per_chunk=choose_chunk_size(images, options),
    )


def _read_student_hash(tracking_uri: str, name: str, number: str) -> str:
    with tracking.open_client(tracking_uri) as client:
        mlflow_registry.require_model(client, name)
        return str(mlflow_registry.get_version(client, name, number, "version").tags.get(mlflow_registry.STUDENT, ""))


def _require_same(
    folder: Folder, begun: GenerationRun, model: ModelReference, prompts: dict[str, DataFile], options: BatchOptions
) -> None:
    """Reject a request for other images; the version's own URI is as good as the alias that named it."""
    pinned = f"models:/{begun.name}/{begun.version}"
    if model.uri not in (begun.model, pinned):
        raise _differs(folder, "model", model.uri, begun.model if begun.model == pinned else f"{begun.model}, {pinned}")
    for name, value in options.image_options:
        if value != (saved := getattr(begun.options, name)):
            raise _differs(folder, name, value, saved)
    if list(prompts) != list(begun.prompts):
        raise _differs(folder, "prompts", ", ".join(prompts), ", ".join(begun.prompts))
    for path, file in prompts.items():
        if file.sha256 != begun.prompts[path].sha256:
            raise _differs(folder, f"prompts: {path}: sha256", file.sha256[:12], begun.prompts[path].sha256[:12])


def _differs(folder: Folder, field: str, value: object, saved: object) -> UserError:
    place = f"as in {folder.uri}, which holds its images"
    return invalid(field, value, f"{saved!r}, {place}", "Pass the same value, or another --out.")


def _require_same_student(folder: Folder, begun: GenerationRun, tracking_uri: str) -> None:
    sha256 = _read_student_hash(tracking_uri, begun.name, begun.version)
    if sha256 != begun.student_sha256:
        raise _differs(folder, f"version {begun.version}: student_sha256", sha256[:12], begun.student_sha256[:12])


def _require_empty(folder: Folder) -> None:
    entries = [*folder.list_dirs(), *(name for name in folder.list_files() if not name.endswith(PARTIAL))]
    if entries:
        raise invalid("out", folder.uri, f"an empty or a new folder, but it holds {entries[0]!r}")
