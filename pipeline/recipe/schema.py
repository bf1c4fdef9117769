"""The sections of a recipe and their fields. A field's docstring is its description in docs/configuration.md."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from datasets_prep.filters import Filters
from nasa.method_options import MethodOptions
from pipeline.cron import FIELDS, is_cron, is_time_zone
from pipeline.gpu_specs import GPUS
from pipeline.recipe.notify import Notify
from pipeline.recipe.section import (
    Fraction,
    JpegQuality,
    Name,
    Names,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    Section,
    build_validator,
)

BUNDLED = "shapes"
"""The name of the Shapes toy dataset and of the teacher, CLIP and judges trained on it, which come with the project."""

FILE_NAME = r"[A-Za-z0-9][\w.-]{0,99}"
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class MethodSection(MethodOptions):  # noqa: D101
    __doc__ = MethodOptions.__doc__
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True)
class FilterSection(Filters):  # noqa: D101
    __doc__ = Filters.__doc__
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


class Source(Section):
    """One source of prompts."""

    path: str = BUNDLED
    """"shapes" for the bundled toy prompts, or a file, a folder or a glob pattern, local or s3://"""
    name: str = ""
    """name of its shards; empty: the last part of the path"""
    column: str = ""
    """column that holds the prompts, with dots into nested objects; empty: found by its usual names"""
    weight: NonNegative = 0.0
    """share of an epoch relative to the other sources; 0 takes every prompt once"""


class Prompts(Section):
    """The prompts that training reads, cleaned and filtered, and the corpus of negative prompts."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = (Source(),)
    """sources of prompts"""
    root: str = ""
    """folder, local or s3://, of relative paths of sources and negatives; empty: the working directory"""
    count: PositiveInt = 24_000
    """number of prompts drawn from the Shapes toy dataset"""
    negative_draws: PositiveInt = 20_000
    """number of negative prompts drawn from the Shapes toy dataset"""
    negatives: str = ""
    """files of negative prompts, such as NegOpt's, that are added to the common negative terms"""
    negative_count: PositiveInt = 10_000
    """size of the negative corpus (paper: 10K)"""
    rows_per_shard: PositiveInt = 65_536
    """rows per Parquet shard"""
    avoid_contradictions: bool = True
    """whether a prompt is never paired with a negative prompt that contradicts it"""
    filters: FilterSection = FilterSection()
    """filters of prompts"""
    near_duplicates: Probability = 0.8
    """Jaccard similarity of words from which two prompts are duplicates; 0 removes exact duplicates only"""
    tokenizer: str = ""
    """folder or hub id of the tokenizer that counts tokens; empty: the teacher's"""
    on_unreadable: Literal["skip", "stop"] = "skip"
    """what happens at an unreadable file: it is skipped and reported, or the command stops"""

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if not self.is_bundled and any(source.path == BUNDLED for source in self.sources):
            raise ValueError(f'sources: got "{BUNDLED}" beside others; expected it alone.')
        return self

    def resolve(self, path: str) -> str:
        """Return a source's path below `root`; absolute paths and URIs stay as they are."""
        if not self.root or path == BUNDLED or path.startswith(("s3://", "/", "~")):
            return path
        return f"{self.root.rstrip('/')}/{path}"

    @property
    def node_local_paths(self) -> list[str]:
        """Relative paths, which other nodes of a cluster do not see."""
        paths = [self.resolve(source.path) for source in self.sources]
        return [path for path in paths if path != BUNDLED and not path.startswith(("s3://", "/"))]

    @property
    def is_bundled(self) -> bool:
        """Tell whether the prompts are those of the Shapes toy dataset."""
        return [source.path for source in self.sources] == [BUNDLED]


class Student(Section):
    """The student. With a `lora_rank` above 0 only adapters are trained; the result has them merged, and as a LoRA."""

    init: str = ""
    """folder, s3:// or hub id of the pipeline whose denoiser initialises the student; empty: the teacher's"""
    learning_rate: Positive = 1e-4
    """AdamW's learning rate (paper: 1e-6)"""
    lr_scheduler: Literal["constant", "linear"] = "constant"
    """whether the learning rate stays, or falls linearly to 0 at the last step"""
    ema_decay: Fraction = 0.99
    """decay of the exponential moving average of the student's weights, per step"""
    lora_rank: NonNegativeInt = 0
    """rank of the student's LoRA adapters; 0 trains all weights"""
    lora_alpha: PositiveInt = 512
    """peft's lora_alpha of the student's adapters"""
    lora_target_modules: Names = ("to_q", "to_k", "to_v", "to_out.0")
    """peft's target_modules of the student's adapters"""


class LoraTeacher(Section):
    """The LoRA teacher, which learns the score of the student's images."""

    learning_rate: Positive = 1e-3
    """AdamW's learning rate (paper: 1e-3)"""
    rank: PositiveInt = 64
    """rank of the adapters (paper: 64)"""
    lora_alpha: PositiveInt = 128
    """peft's lora_alpha (paper: 128)"""
    target_modules: tuple[Name, ...] = ()
    """peft's target_modules; empty: those of the teacher's model family (to_q and to_v, as SwiftBrush)"""
    warm_up_steps: NonNegativeInt = 0
    """steps after `regression.start_steps` that train the LoRA teacher alone, on the student's images"""


class Regression(Section):
    """Regression of the student on the teacher's own images, beside the VSD loss (DMD, arXiv 2311.18828).

    A pair is a prompt, a noise, and the image that the teacher's many steps make of both. VSD alone forgets variety;
    the pairs keep it, and need prompts alone.
    """

    weight: NonNegative = 0.0
    """weight of the distance to the pairs (DMD: 0.25, of LPIPS); 0: no regression"""
    distance: Literal["squared", "pseudo_huber"] = "squared"
    """distance in latents: the mean squared error, or pseudo-Huber, which blurs less what the student cannot fit"""
    images: PositiveInt = 8
    """pairs of a step, over all workers"""
    start_steps: NonNegativeInt = 0
    """first steps, in which the student learns from pairs alone, one for each image of the batch"""
    pairs: str = ""
    """folder of pairs, local or s3://, or "shapes" for the bundled teacher's; empty: sampled beside the prompts"""
    num_pairs: PositiveInt = 2048
    """number of pairs"""
    teacher_steps: PositiveInt = 16
    """sampling steps of the teacher for a pair"""
    guidance_scale: Positive = 3.0
    """guidance scale of the teacher for a pair"""


class Train(Section):
    """Distributed training; elastic with `min_workers` above 0: it continues with fewer workers and grows again."""

    steps: PositiveInt = 300
    """optimizer steps"""
    batch_size: PositiveInt = 96
    """images per step, over all workers"""
    micro_batch_size: NonNegativeInt = 0
    """images per forward pass of one worker; gradients are accumulated; 0: all of the worker's images at once"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """compute precision; trained weights stay float32"""
    gradient_checkpointing: bool = False
    """whether activations are recomputed in the backward pass"""
    compile: bool = False
    """whether denoisers are compiled with torch.compile"""
    num_workers: PositiveInt = 2
    """training workers"""
    min_workers: NonNegativeInt = 0
    """fewest workers of an elastic run; 0: not elastic"""
    cpus_per_worker: Positive = 0.5
    """CPUs per worker"""
    gpus_per_worker: NonNegative = 0.0
    """GPUs per worker"""
    gpu: Annotated[str, build_validator(GPUS.__contains__, ", ".join(GPUS))] = "A100-40GB"
    """GPU model that memory and cost are estimated for"""
    resource_timeout_minutes: NonNegative = 10.0
    """minutes to wait for a cluster to provide the workers' resources"""
    num_encoders: NonNegativeInt = 0
    """text-encoding processes per worker; 0: each worker loads the text encoder itself"""
    cpus_per_encoder: Positive = 1.0
    """CPUs per text-encoding process"""
    gpus_per_encoder: NonNegative = 0.0
    """GPUs per text-encoding process"""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: shard nothing (0), optimizer states (1), gradients too (2), weights too (3)"""
    offload_optimizer: bool = False
    """whether the optimizer's states are in host memory and it runs on the CPU; needs zero_stage 1 or more"""
    offload_parameters: bool = False
    """whether each worker's shard of the weights is in host memory; needs zero_stage 3"""
    overlap_comm: bool = False
    """whether gradients are reduced during the backward pass; needs zero_stage 1 or more"""
    communication_precision: Literal["float32", "bfloat16"] = "float32"
    """precision that gradients are sent in"""
    max_grad_norm: Positive = 1.0
    """norm that gradients are clipped to (SwiftBrush: 1.0)"""
    clip_model: str = BUNDLED
    """folder or hub id of the CLIP of the CLIP loss"""
    clip_decoder: str = ""
    """folder or hub id of an AutoencoderTiny that decodes images for the CLIP loss; empty: the teacher's VAE"""
    clip_images: PositiveInt = 16
    """images of a step, over all workers, that the CLIP loss looks at"""
    clip_weight: NonNegative = 0.1
    """weight of the CLIP loss at the first step, falling to 0 (paper: 0.1)"""
    clip_margin: Positive = 0.37
    """cosine similarity above which the CLIP loss is 0 (paper: tau = 0.37)"""
    checkpoint_every_n_steps: PositiveInt = 100
    """steps between two checkpoints"""
    num_to_keep: PositiveInt = 2
    """newest checkpoints that are kept"""
    max_failures: NonNegativeInt = 3
    """restarts after a worker or node failure"""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """what happens at divergence: training stops, or continues from the latest checkpoint with other random numbers"""
    max_rollbacks: NonNegativeInt = 3
    """rollbacks before training stops"""
    max_grad_norm_ratio: Positive = 1000.0
    """gradient norm, relative to the median of recent steps, above which training diverged"""
    min_image_std_ratio: Fraction = 0.01
    """standard deviation of the student's images, relative to the first step, below which training diverged"""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size < self.num_workers:
            raise ValueError(
                f"batch_size: got {self.batch_size}; expected at least one image per worker, {self.num_workers}."
            )
        if self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers: got {self.min_workers}; expected at most train.num_workers, {self.num_workers}."
            )
        return self

    @model_validator(mode="after")
    def _check_zero_stage(self) -> Self:
        for field, stages, remedy in (
            ("offload_optimizer", (1, 2, 3), "1, 2 or 3"),
            ("overlap_comm", (1, 2, 3), "1, 2 or 3"),
            ("offload_parameters", (3,), "3"),
            ("compile", (0, 1, 2), "0, 1 or 2"),
        ):
            if getattr(self, field) and self.zero_stage not in stages:
                raise ValueError(
                    f"{field}: got True; expected False in zero_stage {self.zero_stage}. "
                    f"Set train.zero_stage = {remedy}."
                )
        return self


class Metric(Section):
    """A scorer of images and its weights. A field that the metric's kind does not read keeps its default."""

    kind: Literal["hpsv2", "clip", "aesthetic", "imaging"] = "hpsv2"
    """HPSv2, CLIP score, LAION's aesthetic predictor, or MUSIQ's imaging quality as VBench uses it"""
    weights: str = ""
    """file, folder or hub id"""
    architecture: str = ""
    """architecture of weights in open_clip's layout; empty: the kind's own"""
    version: Literal["v2.0", "v2.1"] = "v2.1"
    """version of hpsv2"""
    antialias: bool = True
    """hpsv2: whether images are resized with antialiasing, torchvision's default since 0.17"""
    jpeg_quality: JpegQuality = 75
    """hpsv2: JPEG quality of the images that are scored, as its benchmark reads JPEG files; 0: no compression"""
    prefix: str = "A photo depicts "
    """clip: text before each prompt"""
    head: str = ""
    """aesthetic: weights of the linear head"""
    batch_size: PositiveInt = 16
    """images per forward pass"""


class Evaluation(Section):
    """Fixed prompts and seeds through the student and its teacher, scored and judged.

    The student is sampled plain, with NASA at each of `scales` and with classifier-free guidance of `cfg_scale`.
    """

    num_prompts: PositiveInt = 512
    """prompts taken of each prompt set"""
    benchmarks: str = ""
    """folder that `prepare-benchmarks` wrote; empty: the run's own"""
    prompt_sets: tuple[Literal["hpsv2", "negopt", "exclusion"], ...] = ()
    """prompt sets of `prepare-benchmarks`; none: the run's own first prompts"""
    metrics: tuple[Metric, ...] = ()
    """scorers of the images"""
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.25, 0.5, 0.75, 1.0)
    """NASA scales that the student is sampled with"""
    cfg_scale: Positive = 2.0
    """scale of classifier-free guidance on the student's output, for comparison"""
    teacher_prompts: NonNegativeInt = 128
    """prompts of each set that the teacher is sampled on; 0: none"""
    teacher_steps: PositiveInt = 25
    """sampling steps of the teacher"""
    teacher_guidance: Positive = 3.0
    """guidance scale of the teacher"""
    diversity_seeds: NonNegativeInt = 16
    """images of each prompt of the diversity set, by student and teacher; 0: none. Real prompts need a "clip" metric"""
    diversity_prompts: PositiveInt = 8
    """prompts of the diversity set: the first of all sets; the Shapes toy dataset has one of its own"""
    exclusion_seeds: PositiveInt = 384
    """images of each pair of a prompt and a negative prompt in the exclusion set"""
    clip_judge: str = ""
    """folder or hub id of the CLIP that tells what images of the exclusion set show"""
    clip_judge_architecture: str = "ViT-L-14-quickgelu"
    """its architecture, if its weights are in open_clip's layout"""
    calibration: str = ""
    """CSV of labelled images that measures the judge's accuracy"""
    seed: NonNegativeInt = 1234
    """seed of the first image"""
    batch_size: PositiveInt = 64
    """images of one unit of work"""
    num_processes: PositiveInt = 2
    """evaluation processes"""
    cpus_per_process: Positive = 1.0
    """CPUs per process"""
    gpus_per_process: NonNegative = 0.0
    """GPUs per process"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """dtype in which processes compute denoisers and text encoders, also for the pairs of the regression"""
    every_n_checkpoints: NonNegativeInt = 0
    """every n-th checkpoint is evaluated and registered while training continues; 0: none"""
    preview_prompts: tuple[Name, ...] = ()
    """prompts of the images that training logs to MLflow; none: the run's own first prompts"""
    student_selection: Literal["latest", "best"] = "latest"
    """whether the run's student is the last checkpoint or the evaluated one with the best `promotion.metric`"""

    @property
    def reduced_precision(self) -> dict[str, str]:
        """The precision by its name, where results depend on it; empty for float32."""
        return {} if self.precision == "float32" else {"precision": self.precision}


class GuardrailMetric(Section):
    """A metric that must not get worse: its interval shows no regression greater than `max_regression`.

    It needs at least 3 / `max_regression` images that both students have: with fewer, no observed regression would
    still leave a greater one possible (the rule of three).
    """

    metric: Name
    """name of the metric in the evaluation's results"""
    max_regression: NonNegative = 0.0
    """greatest regression, in the metric's unit"""
    higher_is_better: bool = True
    """whether a higher value is better"""


class Promotion(Section):
    """The rule by which a registered student replaces the champion.

    On the prompts and seeds that both were evaluated on, the paired bootstrap interval of its gain in `metric` lies
    above `margin`, and no guardrail is violated. Each interval has the confidence 1 - (1 - confidence) / decisions
    (Bonferroni), so that equally good students replace the champion by chance in at most (1 - confidence) / 2 of such
    series. A guardrail's interval has `confidence` itself.
    """

    metric: Name = "clean_and_right"
    """name of the metric in the evaluation's results"""
    higher_is_better: bool = True
    """whether a higher value is better"""
    margin: NonNegative = 0.0
    """smallest gain, in the metric's unit"""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """confidence of all comparisons together"""
    decisions: Annotated[int, Field(ge=1, le=1000)] = 52
    """comparisons that the confidence covers: a year of weekly runs, and their evaluated checkpoints"""
    guardrails: tuple[GuardrailMetric, ...] = ()
    """metrics that must not get worse"""

    @property
    def decision_confidence(self) -> float:
        """The confidence of a single comparison's interval."""
        return 1 - (1 - self.confidence) / self.decisions


class Schedule(Section):
    """The recurrence of a distillation, and its behaviour after a failure or a missed time."""

    cron: Annotated[str, build_validator(lambda value: not value or is_cron(value), f"five fields: {FIELDS}")] = ""
    """minute, hour, day of month, month, day of week; empty: no recurrence"""
    timezone: Annotated[str, build_validator(is_time_zone, "an IANA name, such as Europe/Berlin")] = "UTC"
    """IANA time zone of `cron`"""
    retries: NonNegativeInt = 2
    """attempts after the first one fails"""
    retry_minutes: Annotated[float, Field(ge=0, le=1440)] = 10.0
    """minutes between a failure and the next attempt"""
    max_lateness_hours: Annotated[float, Field(gt=0, le=8784)] = 24.0
    """hours after its scheduled time at which a run that did not start is missed"""
    warm_start: Literal["champion", "teacher"] = "champion"
    """whether the student starts from the champion's weights, if there is one, or from the teacher's"""


class Retention(Section):
    """The files that stay after a run is registered. Whatever a registered version needs is in MLflow."""

    keep_checkpoints: bool = True
    """whether the checkpoints stay, and the pieces of earlier evaluations; `jobs clean` removes them by hand"""
    scheduled_runs: NonNegativeInt = 0
    """number of the schedule's newest registered runs whose folders stay; 0: all. The history stays in any case"""


class Recipe(Section):
    """One run: its teacher, prompts, method, training, evaluation, promotion, schedule, retention and notifications."""

    name: Annotated[str, Field(pattern=f"^{FILE_NAME}$")] = BUNDLED
    """name of the recipe; the registered model is `nasa-NAME`"""
    seed: NonNegativeInt = 0
    """random seed"""
    teacher: str = BUNDLED
    """"shapes" for the bundled toy teacher, or a folder, s3:// or hub id of a diffusers pipeline"""
    revision: str = "main"
    """branch, tag or commit of a teacher on the hub"""
    resolution: NonNegativeInt = 0
    """width and height of the images in pixels; 0: the teacher's own size"""
    prompts: Prompts = Prompts()
    method: MethodSection = MethodSection()
    student: Student = Student()
    lora_teacher: LoraTeacher = LoraTeacher()
    regression: Regression = Regression()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    promotion: Promotion = Promotion()
    schedule: Schedule = Schedule()
    retention: Retention = Retention()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _check_encoders(self) -> Self:
        if self.train.num_encoders and self.method.negative_per == "batch":
            raise ValueError(
                f'train.num_encoders: got {self.train.num_encoders}; expected 0 with method.negative_per = "batch".'
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.regression.start_steps and not self.regression.weight:
            raise ValueError(
                f"regression.start_steps: got {self.regression.start_steps}; expected 0 with regression.weight = 0."
            )
        if self.first_vsd_step >= self.train.steps:
            raise ValueError(
                f"regression.start_steps + lora_teacher.warm_up_steps: got {self.first_vsd_step}; expected less than "
                f"train.steps, {self.train.steps}, as both come before the first step of eq. 6."
            )
        if self.train.compile and self.method.cold_start_steps:
            raise ValueError(
                f"method.cold_start_steps: got {self.method.cold_start_steps}; expected 0 with train.compile, which "
                "would compile anew for each weight of the adapters."
            )
        return self

    @property
    def first_vsd_step(self) -> int:
        """The first step that trains the student by eq. 6."""
        return self.regression.start_steps + self.lora_teacher.warm_up_steps

    def count_gradient_accumulation_steps(self, num_workers: int) -> int:
        """Return the forward passes of each worker per optimizer step: the fewest that `micro_batch_size` allows."""
        largest = -(-self.train.batch_size // num_workers)
        max_images = self.train.micro_batch_size or largest
        return min(-(-largest // max_images), self.train.batch_size // num_workers)

    def get_batch_slice(self, rank: int, num_workers: int) -> range:
        """Return the indices of a worker's images in the global batch: as many as the others have, or one more."""
        batch_size = self.train.batch_size
        return range(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)

    def has_clip_loss(self, index: int) -> bool:
        """Tell whether the CLIP loss uses the image with this index in the global batch.

        `clip_images` indices are spread evenly over the batch, so every worker decodes its share of them.
        """
        return self._is_spread(index, self.train.clip_images)

    def has_regression(self, index: int) -> bool:
        """Tell whether a step regresses on a pair in the place of this index in the global batch, spread as above."""
        return self._is_spread(index, self.regression.images)

    def _is_spread(self, index: int, images: int) -> bool:
        images, batch = min(images, self.train.batch_size), self.train.batch_size
        return (index + 1) * images // batch > index * images // batch
