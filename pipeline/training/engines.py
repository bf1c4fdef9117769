"""Student and LoRA teacher as two engines in one process: DeepSpeed's, or plain torch's for a single process."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nasa.families import Family
from nasa.lora import add_lora, get_lora_parameters
from nasa.mixed_precision import cast_frozen
from nasa.steerable_denoiser import get_output_layer, make_steerable, require_distillation
from pipeline.models import TextToImage
from pipeline.recipe import Recipe
from pipeline.training.deepspeed_engine import BETAS, WEIGHT_DECAY, EngineOptions, fill_optimizer_states, initialize


class Engine(Protocol):
    """The part of `deepspeed.DeepSpeedEngine` that a training step uses."""

    module: nn.Module
    optimizer: Any  # has torch's `param_groups`

    def __call__(self, *inputs: Any) -> Any:
        """Run the network."""

    def backward(self, loss: Tensor) -> object:
        """Add a loss's gradients to those of the step."""

    def step(self) -> None:
        """Update the weights, once all passes of a step have been accumulated."""

    def get_global_grad_norm(self) -> float:
        """Return the norm of the last step's gradients, before clipping."""


MakeEngine = Callable[[Recipe, nn.Module, list[nn.Parameter], float, int], Engine]


@dataclass(frozen=True)
class Engines:
    """Two engines, each of which owns the gradients, the optimizer and the ZeRO partition of one trained network.

    Call the teachers through `lora_teacher.module`, never through the engine: an engine that is called while
    its network is not being trained loses count of its gradients.
    """

    student: Engine
    lora_teacher: Engine

    @property
    def teachers(self) -> nn.Module:
        """The frozen teacher with the LoRA teacher's adapters."""
        return self.lora_teacher.module

    def save(self, folder: Path) -> None:
        """Save this rank's part of both engines."""
        for name, engine in self.list_named():
            fill_optimizer_states(engine)
            engine.save_checkpoint(str(folder), tag=name, save_latest=False)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote with the same world size and ZeRO stage."""
        for name, engine in self.list_named():
            loaded, _ = engine.load_checkpoint(str(folder), tag=name)
            assert loaded is not None, f"{folder}/{name}"

    def list_named(self) -> tuple[tuple[str, Any], ...]:
        """Return both engines, which are DeepSpeed's if they are saved, by name."""
        return ("student", self.student), ("lora_teacher", self.lora_teacher)


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    """Set the learning rate of the engine's next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def build_deepspeed_engine(
    recipe: Recipe, model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, workers: int
) -> Engine:
    """Return a DeepSpeed engine for one network."""
    train, passes = recipe.train, recipe.count_gradient_accumulation_steps(workers)
    options = EngineOptions(
        micro_batch_size=-(-train.batch_size // (workers * passes)),
        accumulation=passes,
        max_grad_norm=train.max_grad_norm,
        zero_stage=train.zero_stage,
        offload_optimizer=train.offload_optimizer,
        offload_parameters=train.offload_parameters,
        overlap_comm=train.overlap_comm,
        communication_precision=train.communication_precision,
    )
    engine: Engine = initialize(model, parameters, learning_rate, options)
    return engine


class PlainEngine:
    """An engine for one process: gradient accumulation, clipping and AdamW."""

    def __init__(
        self, recipe: Recipe, model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, workers: int
    ) -> None:
        self.module = model
        self._parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, fused=True, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self._accumulation, self._clip = recipe.count_gradient_accumulation_steps(workers), recipe.train.max_grad_norm
        self._passes, self._norm = 0, 0.0

    def __call__(self, *inputs: Any) -> Any:
        """Run the network."""
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step."""
        (loss / self._accumulation).backward()

    def step(self) -> None:
        """Update the weights, once all passes of a step have been accumulated."""
        self._passes += 1
        if self._passes % self._accumulation == 0:
            self._norm = float(nn.utils.clip_grad_norm_(self._parameters, self._clip))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        """Return the norm of the last step's gradients, before clipping."""
        return self._norm


def build_engines(
    recipe: Recipe,
    teacher: TextToImage,
    device: torch.device,
    *,
    workers: int = 1,
    init: Any = None,
    make: MakeEngine = build_deepspeed_engine,
) -> Engines:
    """Build both engines: the student from `init`'s or the teacher's weights, and the teacher with LoRA adapters.

    All parts are cast where they are, in host memory if they were loaded there, and then moved to the device.
    """
    torch.manual_seed(recipe.seed)  # the adapters' initial values, the same on every rank
    dtype, family, start = compute_dtype(recipe), teacher.family, teacher.denoiser if init is None else init
    whole = None if recipe.student.lora_rank else deepcopy(start).requires_grad_(True)  # in float32
    for part in (*teacher.list_modules(), *([] if init is None else [init])):
        denoiser = part in (teacher.denoiser, init)
        cast_frozen(part, dtype, keep=get_output_layer(part, family) if denoiser else None)
    model = deepcopy(start) if whole is None else whole
    add_student_lora(recipe, model)
    add_lora(
        teacher.denoiser,
        rank=recipe.lora_teacher.rank,
        lora_alpha=recipe.lora_teacher.lora_alpha,
        target_modules=choose_lora_targets(recipe, family),
    )
    for parameter in (*get_lora_parameters(teacher.denoiser), *get_lora_parameters(model)):
        parameter.data = parameter.data.float()
    for part in teacher.list_modules():
        part.to(device)
    student = make_steerable(model, dtype, family).to(device)
    teachers = make_steerable(teacher.denoiser, dtype, teacher.family).to(device)
    if recipe.train.gradient_checkpointing:
        student.enable_gradient_checkpointing()
        teachers.enable_gradient_checkpointing()
    if recipe.train.compile:
        compile_denoisers(student, teachers)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return Engines(
        student=make(recipe, student, trained, recipe.student.learning_rate, workers),
        lora_teacher=make(recipe, teachers, get_lora_parameters(teachers), recipe.lora_teacher.learning_rate, workers),
    )


def compile_denoisers(student: Any, teachers: Any, backend: Any = "inductor") -> None:
    """Compile both denoisers, each with its own graphs, since `torch.compile` limits the graphs of a class.

    Three graphs are expected: the student's, the teachers' without gradient and the LoRA teacher's with it.
    """
    for part in (student, teachers):
        part.model.compile(backend=backend, isolate_recompiles=True)


def choose_lora_targets(recipe: Recipe, family: Family) -> tuple[str, ...]:
    """Return the LoRA teacher's target modules: the recipe's, or the family's own."""
    return recipe.lora_teacher.target_modules or require_distillation(family).lora_target_modules


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of the recipe's mixed precision; trained weights are float32 in either case."""
    return torch.bfloat16 if recipe.train.precision == "bfloat16" else torch.float32


def add_student_lora(recipe: Recipe, model: Any) -> None:
    """Add LoRA adapters to the student if the recipe trains only adapters."""
    options = recipe.student
    if options.lora_rank:
        add_lora(
            model, rank=options.lora_rank, lora_alpha=options.lora_alpha, target_modules=options.lora_target_modules
        )


def check_workers(device: torch.device) -> None:
    """Check that the workers reach each other, by an all-reduce over training's backend.

    Raises:
        RuntimeError: if the sum is not the number of workers.
    """
    if not torch.distributed.is_initialized():
        return
    ones, workers = torch.ones(1, device=device), torch.distributed.get_world_size()
    torch.distributed.all_reduce(ones)
    if int(ones.item()) != workers:
        backend = torch.distributed.get_backend()
        raise RuntimeError(f"all-reduce by {backend}: got {ones.item():g}; expected {workers}, the number of workers")
