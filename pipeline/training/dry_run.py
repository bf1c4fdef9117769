"""The estimate that --dry-run prints: GPUs, hours, cost, disk, host memory, and missing inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets_prep.benchmark_prompts import EXCLUSION_PAIRS, HPSV2_STYLES
from pipeline import manifest, models
from pipeline.errors import UserError
from pipeline.evaluation.suites import BenchmarkSuite, build_suite
from pipeline.gpu_specs import GPUS
from pipeline.model_download import describe_hub_status, is_hub_id
from pipeline.models.clip.loss_model import find_clip_folder, find_decoder_folder
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prepare_benchmarks import BenchmarksManifest
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training.memory_advice import advise, explain_evaluation_misfit, list_stages
from pipeline.training.resource_estimate import (
    GIB,
    UTILISATION,
    VAE_PARAMETERS,
    Estimate,
    count_text_encoder_parameters,
    estimate,
    estimate_evaluation_bytes,
    list_networks,
)
from pipeline.training.state_memory import estimate_host_bytes

PROCESS_BYTES = 2 * GIB  # host memory of a worker without models
MISSING = "missing"


@dataclass(frozen=True)
class Budget:
    """GPUs held at once, hours of training and of the evaluations beside it, bytes; None if unknown."""

    training_gpus: float
    evaluation_gpus: float
    training_hours: float | None
    evaluation_hours: float | None
    evaluations: int
    disk: float
    host_memory: float

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of the total run."""
        if self.training_hours is None or self.evaluation_hours is None:
            return None
        return self.training_gpus * self.training_hours + self.evaluation_gpus * self.evaluation_hours


def compute_budget(recipe: Recipe, estimated: Estimate) -> Budget:
    """Return what the run takes; hours assume a share of the GPU's peak (`resource_estimate.UTILISATION`)."""
    train, options = recipe.train, recipe.evaluation
    evaluations = (
        train.steps // (options.every_n_checkpoints * train.checkpoint_every_n_steps)
        if options.every_n_checkpoints
        else 0
    )
    gpu = GPUS[train.gpu] if train.gpus_per_worker else None
    training = evaluation = None
    if gpu:
        peak = gpu.flops[train.precision]
        training = estimated.step_seconds(peak) * train.steps / 3600
        one = _count_evaluation_flops(recipe, estimated) / (UTILISATION * gpu.flops[options.precision]) / 3600
        evaluation = one * evaluations / max(1, options.num_processes)
    return Budget(
        training_gpus=train.num_workers * (train.gpus_per_worker + train.num_encoders * train.gpus_per_encoder),
        evaluation_gpus=options.num_processes * options.gpus_per_process if options.every_n_checkpoints else 0.0,
        training_hours=training,
        evaluation_hours=evaluation,
        evaluations=evaluations,
        disk=_estimate_disk(recipe, estimated),
        host_memory=_estimate_host_memory(recipe, estimated),
    )


def _count_evaluation_flops(recipe: Recipe, estimated: Estimate) -> float:
    """Return the denoiser's FLOPs in one evaluation during training; the teacher is not sampled there."""
    options = recipe.evaluation
    num_methods = 1 + len(options.scales) + 2  # plain, NASA at each scale, guidance with its two passes
    images = 0.0
    for name in options.prompt_sets or ("own",):
        if name == "exclusion":
            images += len(EXCLUSION_PAIRS) * options.exclusion_seeds * num_methods
        else:
            images += options.num_prompts * (len(HPSV2_STYLES) if name == "hpsv2" else 1) * num_methods
    return images * recipe.method.student_steps * estimated.forward_flops


def _estimate_disk(recipe: Recipe, estimated: Estimate) -> float:
    """Return the bytes of the checkpoints kept, of one being written, and of both students with all their parts."""
    trained, every = estimated.trained, estimated.parameters
    frozen = 2.0 if recipe.train.precision == "bfloat16" else 4.0
    checkpoint = 4.0 * every + 12.0 * trained + frozen * every + 16.0 * estimated.lora_parameters + 8.0 * trained
    student = 4.0 * (every + VAE_PARAMETERS + count_text_encoder_parameters(recipe))
    return checkpoint * (recipe.train.num_to_keep + 1) + 2 * student


def _estimate_host_memory(recipe: Recipe, estimated: Estimate) -> float:
    """Return a worker's peak bytes: the teacher's parts and a fully trained student in float32, while it loads.

    What it offloads to the host comes on top, since it is allocated while the models are still there.
    """
    text = 0 if recipe.train.num_encoders else count_text_encoder_parameters(recipe)
    offloaded = sum(estimate_host_bytes(recipe.train, size) for size in list_networks(recipe, estimated))
    denoisers = 1.5 if recipe.student.lora_rank else 2.0  # a LoRA student's copy is half precision
    return PROCESS_BYTES + 4.0 * (denoisers * estimated.parameters + text + VAE_PARAMETERS) + offloaded


def describe(recipe: Recipe, prompt_folder: Folder) -> str:
    """Return the estimate, the budget and the state of every input as text."""
    estimated = estimate(recipe)
    lines = [f"denoiser: {estimated.parameters / 1e6:,.0f} M parameters; passes per step: {estimated.passes}"]
    lines += [f"  {value / GIB:7.2f} GiB  {name}" for name, value in estimated.memory.items()]
    lines.append(f"  {estimated.total / GIB:7.2f} GiB  of each worker's memory")
    lines.append(f"  {estimated.start_up / GIB:7.2f} GiB  while it loads, whatever the ZeRO stage")
    stages = (f"{name}: {value / GIB:.1f} GiB" for name, value in list_stages(recipe, estimated))
    lines.append(f"  memory by stage: {'; '.join(stages)}")
    if recipe.train.gpus_per_worker and estimated.needed > GPUS[recipe.train.gpu].memory:
        lines.append(
            f"  does not fit: a {recipe.train.gpu} has {GPUS[recipe.train.gpu].memory / GIB:.0f} GiB. {advise(recipe)}"
        )
    evaluation = estimate_evaluation_bytes(recipe, estimated)
    lines.append(f"  {evaluation / GIB:7.2f} GiB  of an evaluation process in {recipe.evaluation.precision}, at least")
    if misfit := explain_evaluation_misfit(recipe, estimated):
        lines.append(f"  does not fit: {misfit}")
    total = compute_budget(recipe, estimated)
    lines += _format_compute_and_cost(recipe, estimated, total)
    lines.append(f"  disk: {total.disk / 1e9:,.0f} GB of checkpoints and students in the run's folder")
    lines.append(f"  host memory: {total.host_memory / GIB:,.0f} GiB for each worker on its machine")
    checks = list(_describe_inputs(recipe, prompt_folder))
    lines += [f"  {name}: {state}" for name, state in checks]
    if absent := [name for name, state in checks if state.startswith(MISSING)]:
        lines.append(f"not ready: {', '.join(absent)}")
    return "\n".join(lines)


def _format_compute_and_cost(recipe: Recipe, estimated: Estimate, total: Budget) -> Iterator[str]:
    train = recipe.train
    if total.training_hours is None:
        yield f"  {train.num_workers} workers on CPUs; {train.steps:,} steps"
        return
    gpu = GPUS[train.gpu]
    seconds = estimated.step_seconds(gpu.flops[train.precision])
    yield (
        f"  {train.gpu}: {gpu.memory / GIB:.0f} GiB; {estimated.flops / 1e12:,.0f} TFLOP per step and worker, "
        f"{seconds:.2f} s at {UTILISATION:.0%} of its peak (assumed); "
        f"{train.steps:,} steps: {total.training_hours:,.0f} h"
    )
    beside = ""
    if total.evaluations:
        beside = (
            f" and {total.evaluation_gpus:g} beside them for {total.evaluations} evaluations "
            f"({total.evaluation_hours:,.1f} h in all)"
        )
    yield f"  GPUs: {total.training_gpus:g} for training{beside}; {total.gpu_hours:,.0f} GPU hours"
    if gpu.usd_per_hour and total.gpu_hours:
        cost = total.gpu_hours * gpu.usd_per_hour
        yield f"  cost: {cost:,.0f} USD at {gpu.usd_per_hour:.2f} USD per GPU hour (source: docs/costs.md)"
    else:
        yield "  cost: no price is known for this GPU; multiply the GPU hours by yours"


def _describe_inputs(recipe: Recipe, prompt_folder: Folder) -> Iterator[tuple[str, str]]:
    """Yield every input's name and state; nothing is downloaded."""
    prompts = _check_input(lambda: f"{prompt_dataset.load_manifest(prompt_folder).prompts:,} in {prompt_folder.uri}")
    yield "prompts", prompts
    for name, path, revision, find in _list_models(recipe):
        state = describe_hub_status(path, revision, missing=MISSING) if is_hub_id(path) else _check_input(find)
        yield name, state
    options = recipe.evaluation
    if isinstance(build_suite(recipe), BenchmarkSuite) and options.prompt_sets:
        folder = Folder.from_uri(options.benchmarks) if options.benchmarks else prompt_folder.parent / "benchmarks"
        sets = ", ".join(options.prompt_sets)
        yield "benchmarks", _check_input(lambda: f"{sets} in {_require_benchmarks(folder).uri}")


def _list_models(recipe: Recipe) -> Iterator[tuple[str, str, str, Callable[[], str]]]:
    """Yield the name, path or id, and revision of each model, and a function that finds it in a folder."""
    train, start = recipe.train, recipe.student.init
    yield "teacher", recipe.teacher, recipe.revision, lambda: str(models.find_teacher_folder(recipe.teacher))
    if start:
        yield "student.init", start, "main", lambda: str(models.find_teacher_folder(start))
    if train.clip_weight:
        yield "train.clip_model", train.clip_model, "main", lambda: str(find_clip_folder(train.clip_model))
    if train.clip_weight and train.clip_decoder:
        yield "train.clip_decoder", train.clip_decoder, "main", lambda: str(find_decoder_folder(train.clip_decoder))
    for metric in recipe.evaluation.metrics:
        yield f"weights of {metric.kind}", metric.weights, "main", partial(_require_file, metric.weights)


def _require_benchmarks(folder: Folder) -> Folder:
    manifest.read(folder, BenchmarksManifest)
    return folder


def _require_file(path: str) -> str:
    if not path or not Path(path).expanduser().exists():
        raise UserError(f"{path!r} does not exist")
    return path


def _check_input(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except UserError as error:
        return f"{MISSING}: {error}"
