"""Student and LoRA teacher as two DeepSpeed engines in one process."""

import logging
import os
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasa.backbone import SteerableUNet
from nasa.teachers import add_lora, lora_parameters
from pipeline.models import TextToImage
from pipeline.recipe import Recipe

ADAM = {"betas": (0.9, 0.999), "weight_decay": 0.0}


@dataclass(frozen=True)
class Engines:
    """Each engine owns the gradients, the optimizer and the ZeRO partition of one trained network.

    The teachers are looked at through `lora_teacher.module`, never through the engine: an engine that is
    called while its network is not being trained loses count of its gradients.
    """

    student: Any
    lora_teacher: Any

    @property
    def teachers(self) -> nn.Module:
        module: nn.Module = self.lora_teacher.module
        return module

    def save(self, folder: Path) -> None:
        """This rank's part of both engines."""
        for name, engine in self._named():
            engine.save_checkpoint(str(folder), tag=name, save_latest=False)

    def load(self, folder: Path) -> None:
        for name, engine in self._named():
            loaded, _ = engine.load_checkpoint(str(folder), tag=name)
            assert loaded is not None, f"{folder}/{name}"

    def _named(self) -> tuple[tuple[str, Any], ...]:
        return ("student", self.student), ("lora_teacher", self.lora_teacher)


def build(recipe: Recipe, teacher: TextToImage, device: torch.device) -> Engines:
    """The student starts from the teacher's weights; the LoRA teacher is the teacher with adapters."""
    torch.manual_seed(recipe.seed)  # the adapters' initial values, the same on every rank
    student = SteerableUNet(deepcopy(teacher.unet).requires_grad_(True)).to(device)
    add_lora(
        teacher.unet,
        rank=recipe.lora_teacher.rank,
        scaling=recipe.lora_teacher.scaling,
        targets=recipe.lora_teacher.targets,
    )
    teachers = SteerableUNet(teacher.unet).to(device)
    return Engines(
        student=_engine(recipe, student, student.parameters(), recipe.student.learning_rate),
        lora_teacher=_engine(recipe, teachers, lora_parameters(teachers), recipe.lora_teacher.learning_rate),
    )


def name_accelerator() -> None:
    """Tell DeepSpeed of a machine without a GPU before anything imports it; it warns where it finds out itself."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _engine(recipe: Recipe, model: nn.Module, parameters: Iterable[nn.Parameter], learning_rate: float) -> Any:
    name_accelerator()
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(list(parameters), lr=learning_rate, **ADAM),
        config={
            "train_micro_batch_size_per_gpu": recipe.train.batch_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": recipe.train.gradient_clip,
            "zero_optimization": {"stage": recipe.train.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    return engine
