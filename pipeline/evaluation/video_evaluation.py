"""Evaluation of videos, for the paper's CausVid row: with and without NASA, scored by two metrics of VBench.

The metrics are aesthetic quality and imaging quality.

As in VBench-Long, a video is cut into clips of two seconds. A clip's score is the mean over its frames, a video's the
mean over its clips, and a model's the mean over its videos. A shorter last clip counts as one.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray.data
import torch
from PIL import Image

import nasa
from datasets_prep.benchmark_prompts import NEGATIVE_PROMPTS
from nasa.causvid_sampler import FRAMES_PER_BLOCK, generate_video
from pipeline import manifest, models
from pipeline.errors import UserError, invalid
from pipeline.evaluation import scorers
from pipeline.evaluation.comparison import Comparison, MetricComparison
from pipeline.evaluation.evaluate import REPORT
from pipeline.evaluation.html_report import Card, PageData, Picture, render
from pipeline.evaluation.results import SCORES, SUMMARY
from pipeline.evaluation.statistics import bootstrap_paired, estimate_mean
from pipeline.hashing import hash_json
from pipeline.manifest import Manifest
from pipeline.model_download import download_folder
from pipeline.ray_session import start_ray_session
from pipeline.recipe import Metric, parse_section
from pipeline.recipe.section import NonNegative, NonNegativeInt, Positive, PositiveInt, Section
from pipeline.remote_errors import iter_rows
from pipeline.resource_requests import TIMEOUT_MINUTES, ResourceRequest, build_ray_resources, wait_for_resources
from pipeline.storage import Folder

PLAIN, VIDEOS = "no negative", "videos"
KINDS = ("aesthetic", "imaging")
CLIP_SECONDS = 2
WIDTH = 256  # width of a video in the report, in pixels


class VideoOptions(Section):
    """The options of a video evaluation.

    Attributes:
        model: a Wan pipeline with a CausVid student's weights: a folder or a hub id, at `revision`.
        prompts: a text file, one prompt a line.
        negative: the negative prompt of NASA at `scale`.
        metrics: sections of kind "aesthetic" and "imaging", with their weights.
        frames_per_block: latent frames that are made at once.
    """

    model: str = ""
    revision: str = "main"
    prompts: str = ""
    negative: str = NEGATIVE_PROMPTS["causvid"]
    scale: Positive = 0.5
    metrics: tuple[Metric, ...] = ()
    seed: NonNegativeInt = 0
    fps: PositiveInt = 16
    num_frames: PositiveInt = 81
    height: PositiveInt = 480
    width: PositiveInt = 832
    frames_per_block: PositiveInt = FRAMES_PER_BLOCK
    max_sequence_length: PositiveInt = 512
    processes: PositiveInt = 1
    cpus_per_process: Positive = 1.0
    gpus_per_process: NonNegative = 0.0
    resource_timeout_minutes: NonNegative = TIMEOUT_MINUTES

    @property
    def steered_system(self) -> str:
        """The name of the steered system."""
        return f"NASA {self.scale:g}"


class VideosManifest(Manifest):
    """The manifest of a video evaluation; `prompts` is their number."""

    command = "evaluate-video"
    kind: Literal["evaluate-video"] = "evaluate-video"
    options: VideoOptions
    prompts: int


def evaluate_videos(overrides: Sequence[str], folder: Folder, address: str | None = None) -> Comparison:
    """Write the videos, `scores.parquet`, `summary.json` and `report.html`; a second call resumes."""
    options: VideoOptions = parse_section(VideoOptions, overrides)
    model, prompts = _check_options(options)
    request = ResourceRequest("", "process", 1, build_ray_resources(options.cpus_per_process, options.gpus_per_process))
    with start_ray_session(address):
        wait_for_resources(request, options.resource_timeout_minutes, address)
        rows = _run_workers(options, model, prompts, folder)
    summary = _build_comparison(options, rows)
    folder.write_table(SCORES, pa.Table.from_pylist([row.to_columns() for row in rows]))
    folder.write_json(SUMMARY, summary.to_dict())
    folder.write(REPORT, _report(options, summary, rows, folder).encode())
    manifest.write(folder, VideosManifest(options=options, prompts=len(prompts)))
    return summary


def _check_options(options: VideoOptions) -> tuple[str, list[str]]:
    """Return the model's folder and the prompts, after checking all inputs."""
    kinds = [metric.kind for metric in options.metrics]
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise invalid("metrics", kinds, f"{' and '.join(KINDS)}, each once")
    for metric in options.metrics:
        scorers.check(metric)
    if not options.prompts:
        raise invalid("prompts", "", "a text file with one prompt per line")
    file = Folder.from_uri(options.prompts)
    try:
        lines = file.parent.read(file.uri.rpartition("/")[2]).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"prompts: {options.prompts!r}: not UTF-8 text (byte {error.start})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise invalid("prompts", options.prompts, "a text file with one prompt per line")
    folder = download_folder(options.model, "model", options.revision)
    index = folder / "model_index.json"
    if not options.model or not index.is_file() or json.loads(index.read_text()).get("_class_name") != "WanPipeline":
        raise invalid("model", options.model, "a folder or hub id of a WanPipeline")
    return str(folder), prompts


@dataclass(frozen=True)
class VideoSample:
    """A video to generate: by which system, from which prompt and seed."""

    system: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class VideoRow:
    """A generated video: the key of its files, and its scores by metric."""

    sample: VideoSample
    video: str
    scores: dict[str, float]

    def to_columns(self) -> dict[str, object]:
        """Return the values of a table's columns."""
        return {**asdict(self.sample), "video": self.video, **self.scores}


class VideoWorker:
    """A Ray Data actor that generates videos, stores them with their scores, and returns their rows."""

    def __init__(self, options: VideoOptions, model: str, folder: str) -> None:
        self.options, self.model, self.folder = options, model, Folder.from_uri(folder) / VIDEOS
        self.device = "cuda" if options.gpus_per_process else "cpu"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows of a batch of videos as JSON."""
        rows = [
            json.dumps(asdict(self.load_or_generate_row(VideoSample(**json.loads(sample)))))
            for sample in batch["sample"]
        ]
        return {"row": np.array(rows, dtype=object)}

    def load_or_generate_row(self, sample: VideoSample) -> VideoRow:
        """Return a video's row, generating it if it does not exist."""
        key = hash_json({**self.options.to_dict(), **asdict(sample)})[:24]
        if not self.folder.exists(f"{key}.json"):
            frames = self._generate_frames(sample)
            clips = average_by_clip(frames, CLIP_SECONDS * self.options.fps, self.scorers)
            self.folder.write(f"{key}.webp", encode_webp(frames, self.options.fps))
            self.folder.write_json(f"{key}.json", {**asdict(sample), "clips": clips})
        clips = self.folder.read_json(f"{key}.json")["clips"]
        return VideoRow(sample, key, {name: float(np.mean(values)) for name, values in clips.items()})

    def _generate_frames(self, sample: VideoSample) -> np.ndarray:
        """Return uint8 frames [F, H, W, 3]."""
        options = self.options
        generator = torch.Generator().manual_seed(sample.seed)
        with nasa.steer(self.pipe, options.negative, scale=options.scale if sample.system != PLAIN else 0.0):
            (video,) = generate_video(
                self.pipe,
                sample.prompt,
                height=options.height,
                width=options.width,
                num_frames=options.num_frames,
                frames_per_block=options.frames_per_block,
                max_sequence_length=options.max_sequence_length,
                generator=generator,
            )
        pixels: np.ndarray = (np.clip(video, 0, 1) * 255).round().astype(np.uint8)
        return pixels

    @cached_property
    def pipe(self) -> Any:
        """The Wan pipeline."""
        return models.load_pipeline(download_folder(self.model, "model")).to(self.device)

    @cached_property
    def scorers(self) -> list[scorers.Scorer]:
        """The recipe's metrics."""
        return [scorers.load(metric, self.device) for metric in self.options.metrics]


def average_by_clip(frames: np.ndarray, length: int, used: Sequence[scorers.Scorer]) -> dict[str, list[float]]:
    """Return the mean over the frames of each clip of `length` frames, by metric."""
    scores: dict[str, list[float]] = {}
    for start in range(0, len(frames), length):
        images = [Image.fromarray(frame) for frame in frames[start : start + length]]
        for scorer in used:
            for name, values in scorer(images, [""] * len(images), [None] * len(images)).items():
                scores.setdefault(name, []).append(float(np.mean(values)))  # type: ignore[arg-type]  # all are numbers
    return scores


def encode_webp(frames: np.ndarray, fps: int) -> bytes:
    """Encode frames as an animated WebP."""
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    first, *rest = images
    first.save(buffer, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=70)
    return buffer.getvalue()


def _run_workers(options: VideoOptions, model: str, prompts: Sequence[str], folder: Folder) -> list[VideoRow]:
    samples = [
        VideoSample(system, prompt, options.seed + number)
        for system in (PLAIN, options.steered_system)
        for number, prompt in enumerate(prompts)
    ]
    items = [{"sample": json.dumps(asdict(sample))} for sample in samples]
    stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        VideoWorker,
        fn_constructor_args=(options, model, folder.uri),
        batch_size=1,
        num_cpus=options.cpus_per_process,
        num_gpus=options.gpus_per_process,
        concurrency=min(options.processes, len(items)),
    )
    stream.context.execution_options.preserve_order = True
    rows = [json.loads(row["row"]) for row in iter_rows(stream)]
    return [VideoRow(sample, row["video"], row["scores"]) for sample, row in zip(samples, rows, strict=True)]


def _build_comparison(options: VideoOptions, rows: Sequence[VideoRow]) -> Comparison:
    """Return what NASA changes on the same prompts and noise, by metric."""
    plain, steered = (
        [row for row in rows if row.sample.system == system] for system in (PLAIN, options.steered_system)
    )
    metrics = []
    for name in (kind for kind in KINDS if kind in rows[0].scores):
        a, b = ([row.scores[name] for row in system] for system in (steered, plain))
        difference = bootstrap_paired(a, b)
        verdict = "a" if difference.low > 0 else "b" if difference.high < 0 else ""
        sentence = {"a": "better with NASA", "b": "worse with NASA", "": "no significant difference"}[verdict]
        metrics.append(
            MetricComparison.from_difference(
                name, difference, verdict, sentence, estimate_mean(a).value, estimate_mean(b).value
            )
        )
    return Comparison(a=options.steered_system, b=PLAIN, metrics=tuple(metrics))


def _report(options: VideoOptions, summary: Comparison, rows: Sequence[VideoRow], folder: Folder) -> str:
    names = tuple(metric.metric for metric in summary.metrics)
    half = len(rows) // 2
    cards = []
    for plain, steered in zip(rows[:half], rows[half:], strict=True):
        videos = (Picture(row.sample.system, _read_data_uri(folder / VIDEOS, row.video)) for row in (steered, plain))
        scores = tuple(steered.scores[name] - plain.scores[name] for name in names)
        cards.append(Card(tuple(videos), scores, "", plain.sample.prompt, plain.sample.seed))
    return render(
        "comparison.html.j2",
        PageData(names, tuple(cards)),
        title="videos with and without NASA",
        description=f"Videos on the same prompts and noise, with the negative prompt “{options.negative}” and without.",
        gallery="Videos, by what NASA changes",
        card_width="18rem",
        comparison=summary,
    )


def _read_data_uri(folder: Folder, key: str) -> str:
    return "data:image/webp;base64," + base64.b64encode(folder.read(f"{key}.webp")).decode()
