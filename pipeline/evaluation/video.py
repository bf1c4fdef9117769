"""CausVid's row of the paper: short videos with and without NASA, scored by VBench's aesthetic and imaging quality.

As VBench-Long has it: a video is cut into clips of two seconds, a clip's score is the mean over its frames, a video's
the mean over its clips, a model's the mean over its videos. A last clip that is shorter counts as one.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from PIL import Image

import nasa
from datasets_prep.evaluation import NEGATIVE_PROMPTS
from nasa.causal import FRAMES_PER_BLOCK, generate_video
from pipeline import manifest, models
from pipeline.errors import UserError, invalid
from pipeline.evaluation import scorers
from pipeline.evaluation.report import render
from pipeline.evaluation.statistics import mean, paired_bootstrap
from pipeline.hub import local_folder
from pipeline.manifest import Manifest
from pipeline.recipe import Metric, parse_section
from pipeline.recipe.section import NonNegative, NonNegativeInt, Positive, PositiveInt, Section
from pipeline.remote_errors import iter_rows
from pipeline.resources import TIMEOUT_MINUTES, ResourceRequest, ray_resources, wait_for_resources
from pipeline.session import ray_session
from pipeline.storage import Folder

PLAIN, VIDEOS = "no negative", "videos"
KINDS = ("aesthetic", "imaging")
CLIP_SECONDS = 2
WIDTH = 256  # of a video in the report, in pixels


class Videos(Section):
    """The options of a video evaluation.

    Attributes:
        model: a Wan pipeline with a CausVid student's weights: a folder or a hub id, at `revision`.
        prompts: a text file, one prompt a line.
        negative: what NASA, at `scale`, steers away from.
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
    def steered(self) -> str:
        """The name of the steered system."""
        return f"NASA {self.scale:g}"


class VideosManifest(Manifest):
    """The manifest of a video evaluation; `prompts` is their number."""

    command = "evaluate-video"
    kind: Literal["evaluate-video"] = "evaluate-video"
    options: Videos
    prompts: int


def evaluate_videos(overrides: Sequence[str], folder: Folder, address: str | None = None) -> dict[str, Any]:
    """Write the videos, `scores.parquet`, `summary.json` and `report.html`; a second call goes on where one stopped."""
    options: Videos = parse_section(Videos, overrides)
    model, prompts = _checked(options)
    request = ResourceRequest("", "process", 1, ray_resources(options.cpus_per_process, options.gpus_per_process))
    with ray_session(address):
        wait_for_resources(request, options.resource_timeout_minutes, address)
        rows = _work(options, model, prompts, folder)
    summary = _summary(options, rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    folder.write("scores.parquet", buffer.getvalue())
    folder.write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    folder.write("report.html", _report(options, summary, rows, folder).encode())
    manifest.write(folder, VideosManifest(options=options, prompts=len(prompts)))
    return summary


def _checked(options: Videos) -> tuple[str, list[str]]:
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
    folder = local_folder(options.model, "model", options.revision)
    index = folder / "model_index.json"
    if not options.model or not index.is_file() or json.loads(index.read_text()).get("_class_name") != "WanPipeline":
        raise invalid("model", options.model, "a folder or hub id of a WanPipeline")
    return str(folder), prompts


class VideoStudio:
    """An actor of Ray Data: makes a video, keeps it and its scores, and gives its row."""

    def __init__(self, options: Videos, model: str, folder: str) -> None:
        self.options, self.model, self.folder = options, model, Folder.from_uri(folder) / VIDEOS
        self.device = "cuda" if options.gpus_per_process else "cpu"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of a batch of videos."""
        rows = [json.dumps(self.row(json.loads(sample))) for sample in batch["sample"]]
        return {"row": np.array(rows, dtype=object)}

    def row(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a video's row, generating it if it does not exist."""
        made_of = {**self.options.values(), **sample}
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
        if not self.folder.exists(f"{key}.json"):
            frames = self._frames(sample)
            clips = clip_scores(frames, CLIP_SECONDS * self.options.fps, self.scorers)
            self.folder.write(f"{key}.webp", animated(frames, self.options.fps))
            row = {**sample, "video": key, **{name: float(np.mean(values)) for name, values in clips.items()}}
            self.folder.write(f"{key}.json", json.dumps(row | {"clips": clips}).encode())
        row = json.loads(self.folder.read(f"{key}.json"))
        return {name: value for name, value in row.items() if name != "clips"}

    def _frames(self, sample: dict[str, Any]) -> np.ndarray:
        """uint8 [F, H, W, 3]."""
        own = self.options
        generator = torch.Generator().manual_seed(sample["seed"])
        with nasa.steer(self.pipe, own.negative, scale=own.scale if sample["way"] != PLAIN else 0.0):
            (video,) = generate_video(
                self.pipe,
                sample["prompt"],
                height=own.height,
                width=own.width,
                num_frames=own.num_frames,
                frames_per_block=own.frames_per_block,
                max_sequence_length=own.max_sequence_length,
                generator=generator,
            )
        pixels: np.ndarray = (np.clip(video, 0, 1) * 255).round().astype(np.uint8)
        return pixels

    @cached_property
    def pipe(self) -> Any:
        """The Wan pipeline."""
        return models.load_pipeline(local_folder(self.model, "model")).to(self.device)

    @cached_property
    def scorers(self) -> list[scorers.Scorer]:
        """The recipe's metrics."""
        return [scorers.load(metric, self.device) for metric in self.options.metrics]


def clip_scores(frames: np.ndarray, length: int, own: Sequence[scorers.Scorer]) -> dict[str, list[float]]:
    """Return the mean over the frames of each clip of `length` frames, by metric."""
    found: dict[str, list[float]] = {}
    for start in range(0, len(frames), length):
        images = [Image.fromarray(frame) for frame in frames[start : start + length]]
        for scorer in own:
            for name, values in scorer(images, [""] * len(images), [None] * len(images)).items():
                found.setdefault(name, []).append(float(np.mean(values)))
    return found


def animated(frames: np.ndarray, fps: int) -> bytes:
    """Encode frames as an animated WebP."""
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    first, *rest = images
    first.save(buffer, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=70)
    return buffer.getvalue()


def _work(options: Videos, model: str, prompts: Sequence[str], folder: Folder) -> list[dict[str, Any]]:
    samples = [
        {"way": way, "prompt": prompt, "seed": options.seed + number}
        for way in (PLAIN, options.steered)
        for number, prompt in enumerate(prompts)
    ]
    items = [{"sample": json.dumps(sample)} for sample in samples]
    stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        VideoStudio,
        fn_constructor_args=(options, model, folder.uri),
        batch_size=1,
        num_cpus=options.cpus_per_process,
        num_gpus=options.gpus_per_process,
        concurrency=min(options.processes, len(items)),
    )
    stream.context.execution_options.preserve_order = True
    return [json.loads(row["row"]) for row in iter_rows(stream)]


def _summary(options: Videos, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each way's means, and what NASA changes on the same prompts and noise."""
    plain, steered = ([row for row in rows if row["way"] == way] for way in (PLAIN, options.steered))
    metrics = []
    for name in (kind for kind in KINDS if kind in rows[0]):
        a, b = ([row[name] for row in own] for own in (steered, plain))
        interval = paired_bootstrap(a, b)
        found = {"metric": name, "a": mean(a)["value"], "b": mean(b)["value"], "pairs": len(a), **interval}
        verdict = "a" if interval["low"] > 0 else "b" if interval["high"] < 0 else ""
        sentence = {"a": "better with NASA", "b": "worse with NASA", "": "no difference is shown"}[verdict]
        metrics.append(found | {"verdict": verdict, "sentence": sentence})
    return {"a": options.steered, "b": PLAIN, "metrics": metrics}


def _report(options: Videos, summary: dict[str, Any], rows: Sequence[dict[str, Any]], folder: Folder) -> str:
    names = [metric["metric"] for metric in summary["metrics"]]
    half = len(rows) // 2
    cards = []
    for plain, steered in zip(rows[:half], rows[half:], strict=True):
        videos = [{"way": row["way"], "image": _data_uri(folder / VIDEOS, row["video"])} for row in (steered, plain)]
        scores = [steered[name] - plain[name] for name in names]
        cards.append(
            {"pictures": videos, "scores": scores, "set": "", "prompt": plain["prompt"], "seed": plain["seed"]}
        )
    return render(
        "comparison.html.j2",
        {"metrics": names, "cards": cards, "columns": []},
        title="videos with and without NASA",
        what=f"Videos on the same prompts and the same noise, away from “{options.negative}” and without a negative.",
        gallery="Videos, by what NASA changes",
        card_width="18rem",
        a=summary["a"],
        b=summary["b"],
        comparison=summary,
    )


def _data_uri(folder: Folder, key: str) -> str:
    return "data:image/webp;base64," + base64.b64encode(folder.read(f"{key}.webp")).decode()
