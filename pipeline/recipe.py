"""Recipes: one typed, frozen recipe is one run. Read from TOML, overridden by `--set section.field=value`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w

from datasets_prep.filters import Filters
from nasa.method import Method
from pipeline import config
from pipeline.config import (
    FILE_NAME,
    NAME,
    NAMES,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVES,
    PROBABILITY,
    QUALITY,
    SHARE,
    checked,
)
from pipeline.cron import FIELDS, is_cron, is_zone
from pipeline.errors import UserError, invalid
from pipeline.secrets import masked

RECIPES = Path(__file__).parent / "recipes"
SETS = {"hpsv2", "negopt", "exclusion"}  # of prompts, as `prepare-benchmarks` writes them
EMBEDDED = "shapes"  # the teacher, the prompts and the judges that come with the project


@dataclass(frozen=True)
class Gpu:
    """Bytes of memory, and dense peak operations a second by precision (NVIDIA's data sheets).

    `usd_per_hour` is an eighth of the node's price in docs/data/prices.json, where one is dated.
    """

    memory: float
    flops: dict[str, float]
    usd_per_hour: float | None = None


GPUS = {
    "A100-40GB": Gpu(40 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}, 1.84),
    "A100-80GB": Gpu(80 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}),
    "H100": Gpu(80 * 2**30, {"float32": 67e12, "bfloat16": 989e12}, 4.92),
    "H200": Gpu(141 * 10**9, {"float32": 67e12, "bfloat16": 989e12}),
}


@dataclass(frozen=True)
class Source:
    """Where prompts come from.

    Attributes:
        path: "shapes", or a file, a folder or a pattern with `*`, local or s3://.
        name: of its shards; the path's own where it is empty.
        column: which one holds the prompts, with dots into nested objects; found by its usual names where it is empty.
        weight: its share of an epoch beside the other sources'; 0 takes all of it.
    """

    path: str = EMBEDDED
    name: str = ""
    column: str = ""
    weight: float = checked(0.0, NOT_NEGATIVE)


@dataclass(frozen=True)
class Prompts:
    """What training sees, cleaned and filtered.

    `root` is the folder, local or s3://, that relative paths of sources and negatives are in; where it is empty the
    one that the command runs in.

    `count` and `negative_draws` are of the embedded world; the rest is of one's own sources. `near_duplicates` is the
    overlap of words (Jaccard, 0 to 1) from which two prompts count as one; 0 keeps all but exact repeats. `tokenizer`
    is a folder or a hub id where it is not the teacher's. `negatives` are files of negative prompts, such as NegOpt's,
    from which the corpus of `negative_count` is built, beside the common terms.
    """

    sources: tuple[Source, ...] = checked((Source(),), (bool, "one or more sections [[prompts.sources]]"))
    root: str = ""
    count: int = checked(24_000, POSITIVE)
    negative_draws: int = checked(20_000, POSITIVE)
    negatives: str = ""
    negative_count: int = checked(10_000, POSITIVE)
    rows_per_shard: int = checked(65_536, POSITIVE)
    avoid_contradictions: bool = True
    filters: Filters = field(default_factory=Filters)
    near_duplicates: float = checked(0.8, PROBABILITY)
    tokenizer: str = ""
    on_unreadable: Literal["skip", "stop"] = "skip"

    def place(self, path: str) -> str:
        """Of a source's path below `root`, unless it stands for itself."""
        if not self.root or path == EMBEDDED or path.startswith(("s3://", "/", "~")):
            return path
        return f"{self.root.rstrip('/')}/{path}"

    @property
    def of_one_machine(self) -> list[str]:
        """Sources that other machines do not see: relative paths."""
        placed = [self.place(source.path) for source in self.sources]
        return [path for path in placed if path != EMBEDDED and not path.startswith(("s3://", "/"))]

    @property
    def embedded(self) -> bool:
        return [source.path for source in self.sources] == [EMBEDDED]


@dataclass(frozen=True)
class Student:
    """`init` is a Stable Diffusion folder whose denoiser the student starts from; the teacher's where it is empty.

    With a `lora_rank` above 0 only adapters are trained, and merged into the weights at the end.
    """

    init: str = ""
    learning_rate: float = checked(1e-4, POSITIVE)
    ema_decay: float = checked(0.99, SHARE)
    lora_rank: int = checked(0, NOT_NEGATIVE)
    lora_alpha: int = checked(512, POSITIVE)
    lora_target_modules: tuple[str, ...] = checked(("to_q", "to_k", "to_v", "to_out.0"), NAMES)


@dataclass(frozen=True)
class LoraTeacher:
    learning_rate: float = checked(1e-3, POSITIVE)
    rank: int = checked(64, POSITIVE)
    lora_alpha: int = checked(128, POSITIVE)
    target_modules: tuple[str, ...] = checked(("to_q", "to_v"), NAMES)


@dataclass(frozen=True)
class Train:
    """With `min_workers` above 0 training goes on with as few while machines are missing, and grows again.

    A cluster has `resource_timeout_minutes` to make room for the workers.

    `batch_size` is of a step, over all workers; a worker takes at most `micro_batch_size` at once, or all of its (0).

    With `encoders` above 0 so many processes a worker encode the texts, and the workers load no text encoder.

    "bfloat16" computes in it where that is safe and keeps the trained weights in float32. The CLIP loss looks at
    `clip_images` of a step's images, over all workers. `clip_decoder` is a tiny
    autoencoder (AutoencoderTiny) for the CLIP loss in place of the teacher's. `max_grad_norm_ratio` and
    `min_image_std_ratio` are `pipeline.training.divergence`'s; a rollback continues from the latest checkpoint with
    other random numbers, at most `max_rollbacks` times.
    """

    steps: int = checked(300, POSITIVE)
    batch_size: int = checked(96, POSITIVE)
    micro_batch_size: int = checked(0, NOT_NEGATIVE)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    num_workers: int = checked(2, POSITIVE)
    min_workers: int = checked(0, NOT_NEGATIVE)
    cpus_per_worker: float = checked(0.5, POSITIVE)
    gpus_per_worker: float = checked(0.0, NOT_NEGATIVE)
    gpu: str = checked("A100-40GB", (lambda value: value in GPUS, ", ".join(GPUS)))
    resource_timeout_minutes: float = checked(10.0, NOT_NEGATIVE)
    num_encoders: int = checked(0, NOT_NEGATIVE)
    cpus_per_encoder: float = checked(1.0, POSITIVE)
    gpus_per_encoder: float = checked(0.0, NOT_NEGATIVE)
    zero_stage: int = checked(2, (lambda value: value in (1, 2), "1 or 2"))
    max_grad_norm: float = checked(1.0, POSITIVE)
    clip_model: str = EMBEDDED
    clip_decoder: str = ""
    clip_images: int = checked(16, POSITIVE)
    clip_weight: float = checked(0.1, NOT_NEGATIVE)
    clip_margin: float = checked(0.37, POSITIVE)
    checkpoint_every_n_steps: int = checked(100, POSITIVE)
    num_to_keep: int = checked(2, POSITIVE)
    max_failures: int = checked(3, NOT_NEGATIVE)
    on_divergence: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = checked(3, NOT_NEGATIVE)
    max_grad_norm_ratio: float = checked(1000.0, POSITIVE)
    min_image_std_ratio: float = checked(0.01, SHARE)


@dataclass(frozen=True)
class Metric:
    """A scorer of images and its weights: a file, a folder or a hub id. A field that its kind does not read is left.

    Attributes:
        architecture: of weights in open_clip's layout; the kind's own where it is empty.
        version: of hpsv2.
        antialias: of hpsv2's resize: torchvision's default since 0.17, off before.
        jpeg_quality: of hpsv2, whose benchmark reads JPEG files; 0 scores the images as they are.
        prefix: of clip, before each prompt.
        head: of aesthetic, the linear head's weights.
    """

    kind: Literal["hpsv2", "clip", "aesthetic", "imaging"] = "hpsv2"
    weights: str = ""
    architecture: str = ""
    version: Literal["v2.0", "v2.1"] = "v2.1"
    antialias: bool = True
    jpeg_quality: int = checked(75, QUALITY)
    prefix: str = "A photo depicts "
    head: str = ""
    batch_size: int = checked(16, POSITIVE)


@dataclass(frozen=True)
class Evaluation:
    """Fixed prompts and seeds through the student, by `processes` actors of Ray Data, `batch` images at a time.

    Of each of `sets` the first `prompts` are taken; they are in the folder `benchmarks` that `prepare-benchmarks` made
    (the run's, where it is empty). Without sets the run's own prompts are shown. The student is shown plain, with NASA
    at each of `scales` and with guidance of `cfg_scale`; its teacher in `teacher_steps` on `teacher_prompts` of a set,
    or not (0).

    `metrics` are the scorers beside the embedded judges; `judge` is a CLIP that says what the images of the set
    "exclusion" show, and `calibration` a CSV of labelled images that tells how far it can be trusted.

    With `every` above 0 each so manieth checkpoint is evaluated and registered while training goes on; `keep` says
    whether the run's student is the last checkpoint or, of those that were evaluated, the best by the metric of
    `promotion`.
    """

    num_prompts: int = checked(512, POSITIVE)
    benchmarks: str = ""
    prompt_sets: tuple[str, ...] = checked((), (lambda value: set(value) <= SETS, ", ".join(sorted(SETS))))
    metrics: tuple[Metric, ...] = ()
    scales: tuple[float, ...] = checked((0.25, 0.5, 0.75, 1.0), POSITIVES)
    cfg_scale: float = checked(2.0, POSITIVE)
    teacher_prompts: int = checked(128, NOT_NEGATIVE)
    teacher_steps: int = checked(25, POSITIVE)
    teacher_guidance: float = checked(3.0, POSITIVE)
    exclusion_seeds: int = checked(384, POSITIVE)
    clip_judge: str = ""
    clip_judge_architecture: str = "ViT-L-14-quickgelu"
    calibration: str = ""
    seed: int = checked(1234, NOT_NEGATIVE)
    batch_size: int = checked(64, POSITIVE)
    num_processes: int = checked(2, POSITIVE)
    cpus_per_process: float = checked(1.0, POSITIVE)
    gpus_per_process: float = checked(0.0, NOT_NEGATIVE)
    every_n_checkpoints: int = checked(0, NOT_NEGATIVE)
    student_selection: Literal["latest", "best"] = "latest"


@dataclass(frozen=True)
class GuardrailMetric:
    """A metric that must not get worse: its interval shows no regression greater than `max_regression`.

    It needs at least 3 / `max_regression` images that both students have: with fewer, no observed regression would
    still leave a greater one possible (the rule of three).
    """

    metric: str = checked("", NAME)
    max_regression: float = checked(0.0, NOT_NEGATIVE)
    higher_is_better: bool = True


@dataclass(frozen=True)
class Promotion:
    """When a registered student takes the champion's place.

    On the prompts and seeds that both were evaluated on, its gain in `metric` is above `margin` by a paired bootstrap
    interval, and no guard is broken. `confidence` is that of `decisions` comparisons together, a year of weekly ones
    (checkpoints that are evaluated while training goes on are compared too, and count): each interval has the
    confidence 1 - (1 - confidence) / decisions (Bonferroni), so that a schedule whose students are all equally good
    replaces its champion by chance in at most (1 - confidence) / 2 of such series. A guard's interval has
    `confidence` itself.
    """

    metric: str = checked("clean_and_right", NAME)
    higher_is_better: bool = True
    margin: float = checked(0.0, NOT_NEGATIVE)
    confidence: float = checked(0.95, (lambda value: 0.5 <= value < 1, "0.5 to below 1"))
    decisions: int = checked(52, (lambda value: 1 <= value <= 1000, "1 to 1000"))
    guardrails: tuple[GuardrailMetric, ...] = ()

    @property
    def decision_confidence(self) -> float:
        """The confidence of a single comparison's interval."""
        return 1 - (1 - self.confidence) / self.decisions


@dataclass(frozen=True)
class Schedule:
    """When a distillation recurs, and what becomes of a time that failed or was missed.

    Attributes:
        cron: minute, hour, day, month, weekday; where it is empty it recurs when it is told to.
        timezone: of those, by its IANA name.
        retries: of a failed one, each `retry_minutes` after the failure.
        max_lateness_hours: what was due longer ago is left out.
        warm_start: the student begins with the champion's weights, where there is one, or with the teacher's.
    """

    cron: str = checked("", (lambda value: not value or is_cron(value), f"five fields: {FIELDS}"))
    timezone: str = checked("UTC", (is_zone, "an IANA name, such as Europe/Berlin"))
    retries: int = checked(2, NOT_NEGATIVE)
    retry_minutes: float = checked(10.0, (lambda value: 0 <= value <= 1440, "0 to 1440"))
    max_lateness_hours: float = checked(24.0, (lambda value: 0 < value <= 8784, "above 0, 8784 (a year) at most"))
    warm_start: Literal["champion", "teacher"] = "champion"


@dataclass(frozen=True)
class Recipe:
    """`teacher` is "shapes", a folder, s3:// or a hub id, of which `revision` is a branch, a tag or a commit."""

    name: str = checked("shapes", FILE_NAME)
    seed: int = checked(0, NOT_NEGATIVE)
    teacher: str = EMBEDDED
    revision: str = "main"
    prompts: Prompts = Prompts()
    method: Method = field(default_factory=Method)
    student: Student = Student()
    lora_teacher: LoraTeacher = LoraTeacher()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    promotion: Promotion = Promotion()
    schedule: Schedule = Schedule()

    def passes(self, workers: int) -> int:
        """In how many passes each of so many workers takes its part of a step: as few as `micro_batch_size` allows."""
        largest = -(-self.train.batch_size // workers)
        most = self.train.micro_batch_size or largest
        return min(-(-largest // most), self.train.batch_size // workers)

    def places(self, rank: int, workers: int) -> range:
        """A worker's part of a step's images: as many as the others, or one more."""
        return range(rank * self.train.batch_size // workers, (rank + 1) * self.train.batch_size // workers)

    def has_clip_loss(self, place: int) -> bool:
        """Tell whether the CLIP loss looks at the image in this place of the global batch.

        `clip_images` places are spread evenly over the batch, so every worker decodes its share of them.
        """
        images, batch = min(self.train.clip_images, self.train.batch_size), self.train.batch_size
        return (place + 1) * images // batch > place * images // batch


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name (or TOML file), with `section.field=value` overrides applied and checked."""
    file = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
        raise UserError(f"recipe: {name!r} is not known; allowed: {known}, or the path of a .toml file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    return parse(text, overrides, where=str(file))


def parse(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    recipe: Recipe = config.read(Recipe, text, overrides, where)
    _check_secrets(recipe)
    _check_batch(recipe.train)
    _check_sources(recipe.prompts)
    if recipe.train.num_encoders and recipe.method.negative_per == "batch":
        raise invalid("train.num_encoders", recipe.train.num_encoders, 'none with method.negative_per = "batch"')
    return recipe


def _check_secrets(recipe: Recipe) -> None:
    """It is written into manifests, reports, model cards and MLflow."""
    for line in dump(recipe).splitlines():
        if (shown := masked(line, {})) != line:
            raise UserError(f"recipe: {shown!r} holds a secret; allowed: in the environment, as HF_TOKEN is")


def _check_batch(train: Train) -> None:
    """Every worker has an image, and elastic workers a range."""
    if train.batch_size < train.num_workers:
        raise invalid("train.batch_size", train.batch_size, f"at least one image per worker, {train.num_workers}")
    if train.min_workers > train.num_workers:
        raise invalid("train.min_workers", train.min_workers, f"at most train.num_workers, {train.num_workers}")


def _check_sources(prompts: Prompts) -> None:
    """The embedded world is not mixed with what needs cleaning."""
    if not prompts.embedded and any(source.path == EMBEDDED for source in prompts.sources):
        raise UserError(f'prompts.sources: "{EMBEDDED}" beside others is not allowed; allowed: "{EMBEDDED}" alone')


def dump(recipe: Recipe) -> str:
    """The whole resolved recipe as TOML; `parse` gives the same recipe back."""
    return tomli_w.dumps(dataclasses.asdict(recipe))
