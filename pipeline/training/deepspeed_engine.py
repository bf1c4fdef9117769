"""The DeepSpeed engine of one network. This module needs only torch and DeepSpeed, for a bare GPU machine."""

import fcntl
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

REDUCE_BUCKET = 500_000_000  # elements: DeepSpeed's own default
BETAS, WEIGHT_DECAY = (0.9, 0.999), 0.0  # AdamW's betas


@dataclass(frozen=True)
class EngineOptions:
    """Images per pass, passes per step, the norm that gradients are clipped to, and the ZeRO stage."""

    micro_batch_size: int
    accumulation: int
    max_grad_norm: float
    zero_stage: int


def prepare_deepspeed() -> None:
    """Prepare the environment for DeepSpeed; call it before anything imports DeepSpeed.

    Without a GPU, set DS_ACCELERATOR, since DeepSpeed's own detection warns. Put this environment's scripts first on
    PATH, since the system's ninja may have another version, which would recompile everything.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    scripts, search_path = sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)
    if search_path.split(os.pathsep)[0] != scripts:
        os.environ["PATH"] = f"{scripts}{os.pathsep}{search_path}"


def compile_communication_op() -> None:
    """Compile DeepSpeed's communication op for CPU workers; takes a minute, once per environment.

    torch's own lock outlives a process that is killed while it compiles, and later processes wait for it for ever. This
    lock ends with its process.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        return
    folder = Path(_get_build_directory(builder.name, False))
    with (folder / "one_at_a_time").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load()


def initialize(model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, options: EngineOptions) -> Any:
    """Return the DeepSpeed engine of a network; AdamW trains these parameters, in float32.

    The module handles precision itself: on CUDA the engine turns an outer autocast off.
    """
    prepare_deepspeed()
    import deepspeed

    compile_communication_op()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY),
        config={
            "train_micro_batch_size_per_gpu": options.micro_batch_size,
            "gradient_accumulation_steps": options.accumulation,
            "gradient_clipping": options.max_grad_norm,
            "zero_optimization": {
                "stage": options.zero_stage,
                "reduce_bucket_size": reduce_bucket_elements(sum(parameter.numel() for parameter in parameters)),
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    return engine


def reduce_bucket_elements(trained: int) -> int:
    """Return the size of ZeRO's reduce bucket: at most the engine's parameters, since the whole bucket is allocated."""
    return min(REDUCE_BUCKET, trained)
