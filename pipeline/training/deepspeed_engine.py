"""The DeepSpeed engine of one network. This module needs only torch and DeepSpeed, for a bare GPU machine."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

REDUCE_BUCKET = 500_000_000  # elements: DeepSpeed's own default
# ZeRO stage 3, in elements. DeepSpeed keeps weights whole that are used again within 1e9, which is a whole denoiser.
GATHERED_AHEAD = 50_000_000  # fetched before their layer runs: DeepSpeed's own default
KEPT_GATHERED = 50_000_000  # not released if they are used again within so many
PERSISTENT_SIZE = 100_000  # smaller parameters stay whole: DeepSpeed's own default
COMMUNICATION_TYPES = {"float32": "fp32", "bfloat16": "bf16"}  # DeepSpeed's names
BETAS, WEIGHT_DECAY = (0.9, 0.999), 0.0  # AdamW's betas


@dataclass(frozen=True)
class EngineOptions:
    """Images per pass, passes per step, the norm that gradients are clipped to, and the recipe's memory options."""

    micro_batch_size: int
    accumulation: int
    max_grad_norm: float
    zero_stage: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    overlap_comm: bool = False
    communication_precision: str = "float32"


def prepare_deepspeed() -> None:
    """Prepare the environment for DeepSpeed; call it before anything imports DeepSpeed.

    Without a GPU, set DS_ACCELERATOR, since DeepSpeed's own detection warns.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def skip_compiled_ops() -> None:
    """Let DeepSpeed compile none of its ops.

    For CPU workers it would compile one, in a minute and a half: a reduction in shared memory, which inference alone
    calls. Training's reductions are torch.distributed's.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def initialize(model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, options: EngineOptions) -> Any:
    """Return the DeepSpeed engine of a network; AdamW trains these parameters, in float32.

    The module handles precision itself: on CUDA the engine turns an outer autocast off.
    """
    prepare_deepspeed()
    import deepspeed

    skip_compiled_ops()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY),
        config={
            "train_micro_batch_size_per_gpu": options.micro_batch_size,
            "gradient_accumulation_steps": options.accumulation,
            "gradient_clipping": options.max_grad_norm,
            "zero_optimization": build_zero_config(options, sum(parameter.numel() for parameter in parameters)),
            "communication_data_type": COMMUNICATION_TYPES[options.communication_precision],
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    if not options.zero_stage:
        _keep_gradient_norm(engine, parameters, options.max_grad_norm)
    return engine


def build_zero_config(options: EngineOptions, trained: int) -> dict[str, Any]:
    """Return DeepSpeed's `zero_optimization` for an engine that trains this many parameters."""
    on_host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "stage": options.zero_stage,
        "overlap_comm": options.overlap_comm,
        "reduce_bucket_size": reduce_bucket_elements(trained),
        **({"offload_optimizer": on_host} if options.offload_optimizer else {}),
        **({"offload_param": on_host} if options.offload_parameters else {}),
        "stage3_prefetch_bucket_size": GATHERED_AHEAD,
        "stage3_max_live_parameters": GATHERED_AHEAD + KEPT_GATHERED,
        "stage3_max_reuse_distance": KEPT_GATHERED,
        "stage3_param_persistence_threshold": PERSISTENT_SIZE,
        "memory_efficient_linear": False,  # it replaces F.linear in the whole process, CLIP's and the VAE's included
    }


def _keep_gradient_norm(engine: Any, parameters: list[nn.Parameter], max_grad_norm: float) -> None:
    """Clip the gradients in ZeRO stage 0, where DeepSpeed itself forgets the norm that it clipped by."""

    def clip() -> None:
        engine._global_grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)

    engine.clip_fp32_gradients = clip


def reduce_bucket_elements(trained: int) -> int:
    """Return the size of ZeRO's reduce bucket: at most the engine's parameters, since the whole bucket is allocated."""
    return min(REDUCE_BUCKET, trained)


def fill_optimizer_states(engine: Any) -> None:
    """Give AdamW the states of step 0 where it has none: those of an engine before its first step.

    A checkpoint holds the states that there are, and its conversion to another stage or number of workers needs them.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    partitions = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # stage 3, which empties the groups
    for value in partitions or [value for group in optimizer.param_groups for value in group["params"]]:
        if not optimizer.state[value]:
            moments = {name: torch.zeros_like(value) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[value] = {"step": torch.zeros(()), **moments}
