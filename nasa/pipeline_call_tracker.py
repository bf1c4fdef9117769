"""Tracking of a pipeline's calls: when a call starts, its current step, and how it encodes its prompt.

diffusers has no callbacks for these. Every pipeline in `nasa.batch_layouts` calls `check_inputs` first or has none,
encodes the positive prompt next, then calls `prepare_latents`, and ends a step with `scheduler.step`, so these methods
are wrapped on the instances.
"""

import inspect
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from nasa.batch_layouts import DenoiserCall


class PipelineCallTracker:
    """Tracks the calls of one pipeline.

    `on_encode` is called before the first call of the pipeline's encoder in each call of the pipeline; before, since
    some encoders leave an adapter scaled. `any_caller` allows other pipelines to call the denoiser as well.
    """

    def __init__(
        self, pipe: Any, on_encode: Callable[[inspect.BoundArguments], None], *, any_caller: bool = False
    ) -> None:
        self.pipe, self.any_caller = pipe, any_caller
        self.step, self.calls_in_step, self._images = 0, 0, 0
        self._timestep: float | None = None
        self._on_encode, self._guided, self._awaits_prompt = on_encode, False, True
        self._scheduler: Any = None
        self._scheduler_listeners = ExitStack()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Track the pipeline's calls inside the context."""
        with ExitStack() as stack, self._scheduler_listeners:
            listeners = {
                "check_inputs": self._start_call,
                find_encoder_method(self.pipe): self._handle_encode,
                "prepare_latents": self._handle_latents,
            }
            for name, listener in listeners.items():
                if callable(getattr(self.pipe, name, None)):
                    stack.enter_context(_listen(self.pipe, name, listener))
            self._track_scheduler()
            yield

    def _track_scheduler(self) -> None:
        """Track the pipeline's current scheduler, which may be replaced between two calls."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is self._scheduler:
            return
        self._scheduler_listeners.close()
        self._scheduler = scheduler
        for name, listener in (("set_timesteps", self._reset_step), ("step", self._advance_step)):
            if callable(getattr(scheduler, name, None)):
                self._scheduler_listeners.enter_context(_listen(scheduler, name, listener))

    @property
    def num_steps(self) -> int:
        """Number of denoising steps; Heun's scheduler has order 2: two timesteps per step but the last."""
        scheduler = self.pipe.scheduler
        timesteps = getattr(self.pipe, "num_timesteps", 0) or len(scheduler.timesteps)
        return -(-int(timesteps) // int(getattr(scheduler, "order", 1)))

    def get_denoiser_call(self, batch: int) -> DenoiserCall:
        """Describe the denoiser's next call; a call from outside the pipeline has no guidance."""
        if find_running_pipeline() is None:
            return DenoiserCall(batch, index=self.calls_in_step if self.any_caller else 0)
        has_guidance = getattr(self.pipe, "do_classifier_free_guidance", None)
        return DenoiserCall(
            batch,
            index=self.calls_in_step,
            guided=self._guided if has_guidance is None else bool(has_guidance),
            perturbed=bool(getattr(self.pipe, "do_perturbed_attention_guidance", False)),
            images=self._images,
        )

    def is_step_in(self, steps: Container[int] | None) -> bool:
        """Return whether the current step is one of `steps`; None means all.

        Raises:
            ValueError: `steps` has a step that this call of the pipeline does not have.
        """
        if steps is None:
            return True
        count = self.num_steps
        beyond = [step for step in steps if not 0 <= step < count] if isinstance(steps, Iterable) else []
        if beyond:
            raise ValueError(f"steps: got {beyond[0]}; expected 0 to {count - 1}, the steps of this call.")
        order = int(getattr(self.pipe.scheduler, "order", 1))
        return (self.step // order) % count in steps

    def start_denoiser_call(self, timestep: Any) -> None:
        """Advance the step on a new timestep if the denoiser is called outside a pipeline's call."""
        if find_running_pipeline() is not None or (isinstance(timestep, Tensor) and timestep.is_meta):
            return
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        if self._timestep is not None and value != self._timestep:
            self._advance_step()
        self._timestep = value

    def finish_denoiser_call(self) -> None:
        """Count a call of the denoiser; the next encoder call belongs to a new prompt."""
        self._awaits_prompt = True
        self.calls_in_step += 1

    def _start_call(self, *_: Any) -> None:
        self._awaits_prompt = True
        self._track_scheduler()
        self._reset_step()

    def _handle_encode(self, call: inspect.BoundArguments) -> None:
        if self._awaits_prompt:
            self._awaits_prompt = False
            self._guided = bool(call.arguments.get("do_classifier_free_guidance", False))
            self._on_encode(call)

    def _handle_latents(self, call: inspect.BoundArguments) -> None:
        """Count the images, and start the call of a pipeline that has no `check_inputs`: it may be given embeddings."""
        self._images = int(call.arguments.get("batch_size", 0))
        if not hasattr(self.pipe, "check_inputs"):
            self._start_call()

    def _reset_step(self, *_: Any) -> None:
        self.step, self.calls_in_step, self._timestep = 0, 0, None

    def _advance_step(self, *_: Any) -> None:
        self.step, self.calls_in_step, self._timestep = self.step + 1, 0, None


def find_encoder_method(pipe: Any) -> str:
    """Return the name of the method that encodes prompts; InstructPix2Pix has only the older, private one."""
    return "encode_prompt" if hasattr(pipe, "encode_prompt") else "_encode_prompt"


def find_running_pipeline() -> DiffusionPipeline | ModularPipeline | None:
    """Return the innermost pipeline whose `__call__` is running in this thread, or None.

    Pipelines do not expose this, and another pipeline on the same denoiser must not be steered by this one's rules.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if isinstance(owner, DiffusionPipeline | ModularPipeline):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def _listen(owner: Any, name: str, listener: Callable[[inspect.BoundArguments], None]) -> Iterator[None]:
    """Call `listener` with the arguments of each call of a method, before that call, inside the context."""
    instance_attribute = vars(owner).get(name)
    method = getattr(owner, name)
    signature = inspect.signature(method)

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        listener(call)
        return method(*args, **kwargs)

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        if instance_attribute is None:
            delattr(owner, name)
        else:
            setattr(owner, name, instance_attribute)
