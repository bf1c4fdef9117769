"""The position of a pipeline in its call: when a call begins, its present step, and how it encodes its prompt.

diffusers has no hook for these. Every pipeline in `nasa.conditional` begins a call by `check_inputs`, encodes the
positive prompt first, and ends a step by `scheduler.step`; these methods are listened to on the objects at hand.
"""

import inspect
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from nasa.conditional import DenoiserCall


class PipelineCalls:
    """Follows the calls of one pipeline.

    `encoded` is told of the first call of the pipeline's encoder in each call of the pipeline, before it is made: some
    encoders leave an adapter scaled. `any_caller` says that other pipelines may call the denoiser as well.
    """

    def __init__(
        self, pipe: Any, encoded: Callable[[inspect.BoundArguments], None], *, any_caller: bool = False
    ) -> None:
        self.pipe, self.any_caller = pipe, any_caller
        self.step, self.calls_in_step = 0, 0
        self._timestep: float | None = None
        self._encoded, self._guided, self._awaits_prompt = encoded, False, True
        self._scheduler: Any = None
        self._of_scheduler = ExitStack()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the pipeline's calls within the context."""
        with ExitStack() as stack, self._of_scheduler:
            for name, listener in (("check_inputs", self._begin), (encoder_name(self.pipe), self._encode)):
                if callable(getattr(self.pipe, name, None)):
                    stack.enter_context(_listening(self.pipe, name, listener))
            self._follow_scheduler()
            yield

    def _follow_scheduler(self) -> None:
        """Follow the pipeline's present scheduler, which may be replaced between two calls."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is self._scheduler:
            return
        self._of_scheduler.close()
        self._scheduler = scheduler
        for name, listener in (("set_timesteps", self._first_step), ("step", self._next_step)):
            if callable(getattr(scheduler, name, None)):
                self._of_scheduler.enter_context(_listening(scheduler, name, listener))

    @property
    def number_of_steps(self) -> int:
        """A scheduler of order 2, as Heun's, has two timesteps a step but for the last."""
        scheduler = self.pipe.scheduler
        timesteps = getattr(self.pipe, "num_timesteps", 0) or len(scheduler.timesteps)
        return -(-int(timesteps) // int(getattr(scheduler, "order", 1)))

    def now(self, batch: int) -> DenoiserCall:
        """Return the denoiser's next call; one from outside the pipeline has no guidance."""
        if running_pipeline() is None:
            return DenoiserCall(batch, index=self.calls_in_step if self.any_caller else 0)
        own = getattr(self.pipe, "do_classifier_free_guidance", None)
        return DenoiserCall(
            batch,
            index=self.calls_in_step,
            guided=self._guided if own is None else bool(own),
            perturbed=bool(getattr(self.pipe, "do_perturbed_attention_guidance", False)),
        )

    def is_in(self, steps: Container[int] | None) -> bool:
        """Whether the step at hand is one of `steps`.

        Raises:
            ValueError: for a step that this call of the pipeline does not have.
        """
        if steps is None:
            return True
        count = self.number_of_steps
        beyond = [step for step in steps if not 0 <= step < count] if isinstance(steps, Iterable) else []
        if beyond:
            raise ValueError(f"steps: got {beyond[0]}; expected 0 to {count - 1}, the steps of this call.")
        order = int(getattr(self.pipe.scheduler, "order", 1))
        return (self.step // order) % count in steps

    def calling(self, timestep: Any) -> None:
        """Outside a pipeline's call, and where the scheduler is not asked, another timestep is another step."""
        if running_pipeline() is not None or (isinstance(timestep, Tensor) and timestep.is_meta):
            return
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        if self._timestep is not None and value != self._timestep:
            self._next_step()
        self._timestep = value

    def called(self) -> None:
        """Count a call of the denoiser."""
        self._awaits_prompt = True
        self.calls_in_step += 1

    def _begin(self, *_: Any) -> None:
        self._awaits_prompt = True
        self._follow_scheduler()
        self._first_step()

    def _encode(self, call: inspect.BoundArguments) -> None:
        if self._awaits_prompt:
            self._awaits_prompt = False
            self._guided = bool(call.arguments.get("do_classifier_free_guidance", False))
            self._encoded(call)

    def _first_step(self, *_: Any) -> None:
        self.step, self.calls_in_step, self._timestep = 0, 0, None

    def _next_step(self, *_: Any) -> None:
        self.step, self.calls_in_step, self._timestep = self.step + 1, 0, None


def encoder_name(pipe: Any) -> str:
    """InstructPix2Pix has the older, private method alone."""
    return "encode_prompt" if hasattr(pipe, "encode_prompt") else "_encode_prompt"


def running_pipeline() -> DiffusionPipeline | ModularPipeline | None:
    """Return the pipeline whose `__call__` is running in this thread, the innermost one.

    A pipeline says nowhere that it runs, and another one on the same denoiser would be steered by this one's rules.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if isinstance(owner, DiffusionPipeline | ModularPipeline):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def _listening(owner: Any, name: str, listener: Callable[[inspect.BoundArguments], None]) -> Iterator[None]:
    """Tell `listener` of each call of a method, with its arguments, before the call, inside the context."""
    before = vars(owner).get(name)
    plain = getattr(owner, name)
    signature = inspect.signature(plain)

    @wraps(plain)
    def heard(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        listener(call)
        return plain(*args, **kwargs)

    setattr(owner, name, heard)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
