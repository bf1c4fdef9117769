"""A resumable training loop for small models."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.shapes_training.muon import Muon

WARMUP_STEPS = 100
EMA_DECAY = 0.999


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    state_file: Path,
    save_every: int = 250,
) -> None:
    """Minimise `loss_of(step)` over the model's parameters; leave their moving average in the model.

    Cosine decay to zero after a linear warm-up; Muon for matrices, AdamW for the rest; gradient norm
    clipped to 1. `loss_of` must draw its batch from the step alone, so that a run continued from
    `state_file` is the same run.
    """
    optimizers = _build_optimizers(model, learning_rate)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_warm_ema())
    first = _resume(state_file, model, optimizers, average)
    started, recent = time.monotonic(), 0.0
    for step in range(first, steps):
        loss = loss_of(step)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate * _schedule(step, steps)
            optimizer.step()
        average.update_parameters(model)
        recent = loss.item() if step == first else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(state_file, step + 1, model, optimizers, average)
            pace = (time.monotonic() - started) / (step + 1 - first)
            left = pace * (steps - step - 1) / 60
            print(f"{state_file.stem}: step {step + 1}/{steps}, loss {recent:.4f}, {left:.0f} min left", flush=True)
    model.load_state_dict(average.module.state_dict())
    model.eval()


def _build_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    return [Muon(matrices, learning_rate), torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99))]


def _schedule(step: int, steps: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then a half cosine to zero."""
    warm_up = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


def _warm_ema() -> Callable[..., None]:
    """Return an update rule whose decay grows to EMA_DECAY, so that the average forgets the random start."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        decay = min(EMA_DECAY, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    return update


def _save(file: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: nn.Module) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(
        {"step": step, "model": model.state_dict(), "optimizers": states, "average": average.state_dict()}, partial
    )
    partial.replace(file)


def _resume(file: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: nn.Module) -> int:
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    average.load_state_dict(state["average"])
    print(f"{file.stem}: continuing from step {state['step']}", flush=True)
    return int(state["step"])
