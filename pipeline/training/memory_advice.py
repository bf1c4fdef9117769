"""Whether a recipe fits its GPUs in each ZeRO stage, and which options make it fit."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.gpu_specs import GPUS
from pipeline.recipe import Recipe
from pipeline.training.resource_estimate import GIB, Estimate, estimate, estimate_evaluation_bytes, replace_memory

ADVISED_RANK = 64  # of a student's adapters


def require_fit(recipe: Recipe) -> None:
    """Check that the recipe's GPUs have the memory that it needs.

    Raises:
        UserError: naming the options that make it fit.
    """
    if not recipe.train.gpus_per_worker:
        return
    estimated = estimate(recipe)
    needs, has = estimated.needed, GPUS[recipe.train.gpu].memory
    if needs > has:
        raise UserError(
            f"train.gpu: got {recipe.train.gpu!r}, {has / GIB:.0f} GiB; expected at least {needs / GIB:.0f} GiB, the "
            f"estimate of a worker's memory. {advise(recipe)}"
        )
    if recipe.evaluation.every_n_checkpoints and (misfit := explain_evaluation_misfit(recipe, estimated)):
        raise UserError(misfit)


def explain_evaluation_misfit(recipe: Recipe, estimated: Estimate) -> str:
    """Return why the evaluation's processes do not fit the recipe's GPUs, and a remedy; empty if they may."""
    options, gpu = recipe.evaluation, recipe.train.gpu

    def fits(**changes: Any) -> bool:
        changed = recipe.model_copy(update={"evaluation": options.model_copy(update=changes)})
        share = min(1.0, changed.evaluation.gpus_per_process)
        return not share or estimate_evaluation_bytes(changed, estimated) <= share * GPUS[gpu].memory

    if fits():
        return ""
    lighter, larger = {"precision": "bfloat16"}, {"gpus_per_process": 1.0}
    remedy = next((each for each in (lighter, larger, lighter | larger) if fits(**each)), None)
    settings = [f"evaluation.{name} = {json.dumps(value)}" for name, value in (remedy or {}).items()]
    needs, has = estimate_evaluation_bytes(recipe, estimated), GPUS[gpu].memory * min(1.0, options.gpus_per_process)
    return (
        f"evaluation.precision: got {options.precision!r}, with which a process needs at least {needs / GIB:.0f} GiB; "
        f"expected at most {has / GIB:.0f} GiB of the memory of one {gpu}. "
        + (f"Set {_join(settings)}." if settings else "Use a larger GPU, or a smaller teacher.")
    )


def advise(recipe: Recipe) -> str:
    """Return an imperative sentence that names the first options which make the recipe fit its GPU."""
    changes: dict[str, str] = {}
    for field, value in _list_options(recipe):
        changes[field] = value
        if _fits(recipe, changes):
            return f"Set {_join([f'{name} = {text}' for name, text in _drop_needless(recipe, changes).items()])}."
    larger = [name for name, gpu in GPUS.items() if gpu.memory > GPUS[recipe.train.gpu].memory]
    return f"No option makes it fit. Use {', '.join([*larger, 'more workers'])} or a smaller teacher."


def _list_options(recipe: Recipe) -> list[tuple[str, str]]:
    """Return fields and values in the order in which to try them: what costs time first, what changes the result last.

    Options that the recipe has are left out. With one worker a stage only allows offload.
    """
    train = recipe.train
    micro = -(-train.batch_size // train.num_workers)
    micro = min(train.micro_batch_size or micro, micro)
    halves = [micro >> power for power in range(1, micro.bit_length())]
    stages = range(train.zero_stage + 1, 4 if train.num_workers > 1 and not train.compile else 3)
    options = [
        ("train.gradient_checkpointing", "true", train.gradient_checkpointing),
        *(("train.micro_batch_size", str(images), False) for images in halves),
        *(("train.zero_stage", str(stage), False) for stage in stages),
        ("train.offload_optimizer", "true", train.offload_optimizer),
        ("student.lora_rank", str(ADVISED_RANK), bool(recipe.student.lora_rank)),
        ("train.zero_stage", "3", train.zero_stage == 3),
        ("train.offload_parameters", "true", train.offload_parameters),
    ]
    return [(field, value) for field, value, is_set in options if not is_set]


def _fits(recipe: Recipe, changes: Mapping[str, str]) -> bool:
    """Tell whether the recipe is valid and fits its GPU with these fields changed."""
    values: dict[str, Any] = recipe.to_dict()
    for name, text in changes.items():
        section, field = name.split(".")
        values[section] = values[section] | {field: json.loads(text)}
    try:
        changed = Recipe.from_values(values, "recipe")
    except UserError:  # such as offload_parameters below zero_stage 3
        return False
    return estimate(changed).needed <= GPUS[recipe.train.gpu].memory


def _drop_needless(recipe: Recipe, changes: dict[str, str]) -> dict[str, str]:
    """Return the changes without those that it fits without, of which the costliest are dropped first."""
    for field in reversed(list(changes)[:-1]):
        fewer = {name: value for name, value in changes.items() if name != field}
        if _fits(recipe, fewer):
            changes = fewer
    return changes


def list_stages(recipe: Recipe, estimated: Estimate) -> Iterator[tuple[str, float]]:
    """Yield the name of each ZeRO stage, without and with offload, and the bytes that a worker needs in it."""
    for stage in range(4):
        options = [("", {}), (", offload_optimizer", {"offload_optimizer": True})][: 2 if stage else 1]
        if stage == 3:
            options.append((", both offloads", {"offload_optimizer": True, "offload_parameters": True}))
        for name, change in options:
            plain = {"offload_optimizer": False, "offload_parameters": False, "zero_stage": stage}
            candidate = _set_train(recipe, **(plain | change))
            yield f"zero_stage {stage}{name}", replace_memory(candidate, estimated).needed


def _set_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
