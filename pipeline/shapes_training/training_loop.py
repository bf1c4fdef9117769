"""A resumable training loop for small models, on a CPU or a GPU."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.shapes_training.muon import Muon

WARMUP_STEPS = 100
EMA_DECAY = 0.999
MAX_GRAD_NORM = 1.0
GRAPH_WARM_UP = 3

Batch = dict[str, Tensor]
ComputeLoss = Callable[[Batch], Tensor]


def fit(
    model: nn.Module,
    draw_batch: Callable[[int], Batch],
    compute_loss: ComputeLoss,
    *,
    steps: int,
    learning_rate: float,
    state_file: Path,
    max_seconds: float = math.inf,
    save_every: int = 250,
) -> None:
    """Minimise `compute_loss(draw_batch(step))` over the model's parameters; leave their moving average in the model.

    The learning rate has a linear warm-up and a cosine decay to zero, at `steps` or at `max_seconds` if that comes
    first. Muon updates matrices, AdamW the rest. All random numbers must come from `draw_batch` and be a function of
    the step, so that a run continued from `state_file` is the same run. On CUDA a step is one graph, since small
    models spend most of a step on launching kernels.
    """
    trainer = _Trainer(model, compute_loss)
    first = trainer.load(state_file)
    started, step, progress = time.monotonic(), first, first / steps
    while progress < 1:
        loss = trainer.step(draw_batch(step), learning_rate * _schedule(step, progress), step)
        step += 1
        elapsed = time.monotonic() - started
        progress = max(step / steps, elapsed / max_seconds)
        if step % save_every == 0 or progress >= 1:
            trainer.save(state_file, step if progress < 1 else steps)
            left = elapsed * (1 - progress) / max(progress - first / steps, 1e-9) / 60
            print(f"{state_file.stem}: step {step}/{steps}, loss {loss.item():.4f}, {left:.1f} min left", flush=True)
    trainer.copy_average()
    model.eval()


class _Trainer:
    """The optimizers, the moving average and the update of one model."""

    def __init__(self, model: nn.Module, compute_loss: ComputeLoss) -> None:
        self.model, self.compute_loss = model, compute_loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = self.parameters[0].device
        self.learning_rate, self.ema_share = torch.zeros((), device=device), torch.ones((), device=device)
        self.optimizers = _build_optimizers(model, self.learning_rate)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.graph: _Graph | None = None
        self.uses_graph = device.type == "cuda"

    def step(self, batch: Batch, learning_rate: float, step: int) -> Tensor:
        """Update the weights and their moving average; return the loss.

        The decay of the average grows to EMA_DECAY, so that the average forgets the random start.
        """
        if self.uses_graph and self.graph is None:
            self._capture(batch)
        self.learning_rate.fill_(learning_rate)
        self.ema_share.fill_(1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        return self.graph.run(batch) if self.graph else self._update(batch)

    def _capture(self, batch: Batch) -> None:
        try:
            self.graph = _Graph(self._update, self.model, batch)
        except RuntimeError as error:
            self.uses_graph = False
            print(f"a step runs without a CUDA graph: {str(error).splitlines()[0]}", flush=True)
            self.model.zero_grad()

    def _update(self, batch: Batch) -> Tensor:
        loss = self.compute_loss(batch)
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            change = torch._foreach_sub([p.detach() for p in self.parameters], self.average)
            torch._foreach_mul_(change, self.ema_share)
            torch._foreach_add_(self.average, change)
        return loss.detach()

    def copy_average(self) -> None:
        """Copy the moving average into the model."""
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.parameters), self.average)

    def save(self, file: Path, step: int) -> None:
        """Write the state of training, atomically."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": step, "model": self.model.state_dict(), "optimizers": optimizers, "average": self.average}
        torch.save(state, partial)
        partial.replace(file)

    def load(self, file: Path) -> int:
        """Load the state of training if there is one; return the next step."""
        if not file.exists():
            return 0
        state = torch.load(file, weights_only=True, map_location=self.learning_rate.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            optimizer.param_groups[0]["lr"] = self.learning_rate
        torch._foreach_copy_(self.average, state["average"])
        print(f"{file.stem}: continuing from step {state['step']}", flush=True)
        return int(state["step"])


class _Graph:
    """An update captured as a CUDA graph, which reads its batch from fixed tensors."""

    def __init__(self, update: ComputeLoss, model: nn.Module, batch: Batch) -> None:
        self.batch = {name: value.clone() for name, value in batch.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UP):  # with a learning rate of zero
                update(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        model.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = update(self.batch)

    def run(self, batch: Batch) -> Tensor:
        for name, value in batch.items():
            self.batch[name].copy_(value)
        self.graph.replay()
        return self.loss


def _build_optimizers(model: nn.Module, learning_rate: Tensor) -> list[torch.optim.Optimizer]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.ndim < 2 or id(p) in tables]
    adam = torch.optim.AdamW(rest, learning_rate, betas=(0.9, 0.99), capturable=learning_rate.is_cuda)
    return [Muon(matrices, learning_rate), adam]


def _schedule(step: int, progress: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then a half cosine to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))
