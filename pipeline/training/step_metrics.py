"""The metrics of a training step: losses, gradient norms, and the variation of its images."""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from pipeline.training.engines import Engine

LOSSES = "loss_student", "loss_clip", "loss_lora_teacher", "vsd_gradient_rms"


def collect_metrics(x0: Tensor, **measured: Tensor | float) -> dict[str, Tensor | float]:
    """Return the metrics of a pass with images x0 [B, C, H, W]: 0 for a loss of `LOSSES` that was not measured."""
    values = {**dict.fromkeys(LOSSES, 0.0), **measured}
    variation = x0.detach().std(dim=0).mean() if len(x0) > 1 else 1.0
    detached = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
    return {**detached, "image_variation": variation}


def get_gradient_norm(engine: Engine, is_trained: bool) -> float:
    """Return the norm of a step's gradients, before clipping; 0 if the step does not train the engine."""
    return float(engine.get_global_grad_norm()) if is_trained else 0.0


def reduce_metrics(local: Mapping[str, Tensor | float], device: torch.device, world_size: int) -> dict[str, float]:
    """Return the means over all ranks, with one all-reduce."""
    values = torch.stack([torch.as_tensor(value, device=device, dtype=torch.float32) for value in local.values()])
    if world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values /= world_size
    return dict(zip(local, values.tolist(), strict=True))
