"""A denoiser within a `steer` context: a forward pre-hook sets the negative and the rows to steer."""

import inspect
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from nasa.attention import SteeredAttnProcessor, repeat_per_image
from nasa.batch_layouts import BatchSplit, Layout, split_batch
from nasa.compat import get_cache_config, get_offload_hook, unwrap_compiled
from nasa.families import Family
from nasa.lora import fingerprint_module, get_lora_scale, scale_adapters
from nasa.negative_prompt import NegativePrompt
from nasa.pipeline_call_tracker import PipelineCallTracker, find_running_pipeline
from nasa.processor_installation import install_steering, remove_steering

KEY_MODULES = ("to_k", "to_v", "to_kv", "norm_k", "norm_cross")  # modules that keys and values depend on
_STEERED_MODELS: WeakSet[nn.Module] = WeakSet()  # denoisers within any `steer` context


class SteeredDenoiser:
    """A denoiser with its steering state.

    K- and V- of each cross-attention layer are computed again only when the negative, the LoRA scale of the call or the
    layers' weights change.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        steering: Any,
        calls: PipelineCallTracker,
        negative: NegativePrompt,
        layout: Layout,
        steps: Container[int] | None,
    ) -> None:
        self.model, self.steering, self.steered = model, steering, False
        self._family, self._calls, self._negative = family, calls, negative
        self._layout, self._steps = layout, steps
        self._attention: list[Any] = []
        self._computed_from: Any = None

    @contextmanager
    def install(self, layers: Callable[[str], bool]) -> Iterator[None]:
        """Install the steering processors inside the context, and restore the original ones afterwards."""
        base = unwrap_compiled(self.model)
        if base in _STEERED_MODELS:
            raise ValueError(
                f"pipe: got a {type(base).__name__} that is being steered; expected one `steer` context at a time. "
                "Exit the other one first."
            )
        _reject_incompatible_cache(self._steps, self.model)
        original_processors = install_steering(self.model, self._family, self.steering, layers)
        self._attention = [layer for layer in self.model.modules() if _is_cross_attention(layer)]
        _STEERED_MODELS.add(base)
        hook = self.model.register_forward_pre_hook(self, with_kwargs=True)
        try:
            with self._separate_cache_contexts():
                yield
        finally:
            hook.remove()
            _STEERED_MODELS.discard(base)
            remove_steering(self.model, self._family, original_processors)

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prepare a call of the denoiser, as a forward pre-hook that may change the arguments."""
        names = _parameter_names(type(unwrap_compiled(model)).forward)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        self._reject_other_pipeline()
        if self._steps is not None or self._calls.any_caller:
            self._calls.start_denoiser_call(arguments[self._family.arguments.timestep])
        self.steering.active = self._is_steered(arguments)
        self._calls.finish_denoiser_call()
        if self.steering.is_plain:
            return None
        self.steered = True
        if self._family.extend is None:
            return None
        return (), {**arguments, **self._append_negative_tokens(arguments)}

    def _reject_other_pipeline(self) -> None:
        other = find_running_pipeline()
        if other is not None and other is not self._calls.pipe and not self._calls.any_caller:
            raise ValueError(
                f"pipe: got a call of {type(other).__name__} while its denoiser is steered for another pipeline; "
                f"expected calls of that {type(self._calls.pipe).__name__}. Call `steer` on the pipeline that you run."
            )

    def _is_steered(self, arguments: dict[str, Any]) -> bool:
        """Return whether this call is steered; if so, prepare the state of the layers."""
        self._negative.encode_with_defaults()
        if self._negative.embeds is None or not self._calls.is_step_in(self._steps):
            return False
        latents = arguments[self._family.arguments.latents]
        self.steering.split = self._split(latents)
        if self.steering.split is not None and not len(self.steering.split.conditional):
            return False
        self._prepare(self._negative.embeds.to(latents[0]), get_lora_scale(arguments))
        return True

    def _split(self, latents: Tensor | list[Tensor]) -> BatchSplit | None:
        return split_batch(self._layout(self._calls.get_denoiser_call(len(latents))), len(latents), latents[0].device)

    def _append_negative_tokens(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the changed arguments: every row gets the negative's tokens, but only conditional rows use them."""
        assert self._family.extend is not None
        positive = arguments[self._family.arguments.text]

        def fill_rows(part: Tensor) -> Tensor:
            chosen = self.steering.split
            if chosen is None:
                return repeat_per_image(part, len(positive))
            rows = part[:1].expand(len(positive), *part.shape[1:]).clone()
            rows[chosen.conditional] = repeat_per_image(part, len(chosen.conditional)).to(rows)
            return rows

        text, mask = fill_rows(self.steering.embeds_NTD), self.steering.mask_NT
        self.steering.positive_tokens = len(positive[0])
        return self._family.extend(arguments, text.to(positive[0]), None if mask is None else fill_rows(mask))

    @torch.no_grad()
    def _prepare(self, embeds: Tensor, adapter_scale: float) -> None:
        """Project the text and compute K- and V- of each cross-attention layer.

        An offloaded model is moved to the device first; a layer that stays offloaded computes its keys in each call.
        """
        source = (
            self._negative.version,
            embeds.device,
            embeds.dtype,
            adapter_scale,
            _fingerprint_key_modules(self._attention),
        )
        if self.steering.embeds_NTD is not None and source == self._computed_from:
            return
        offloaded = get_offload_hook(self.model)
        if offloaded is not None:
            offloaded.pre_forward(self.model)
        with scale_adapters([self.model], adapter_scale):
            text = self._family.project(self.model, embeds)
            for layer in filter(_is_cross_attention, self._attention):
                is_on_device = next(layer.parameters()).device == text.device
                layer.processor.negative_keys = layer.processor.project_key_value(layer, text) if is_on_device else None
        self.steering.embeds_NTD, self.steering.mask_NT = text, self._negative.mask
        if isinstance(self.steering.scale, Tensor):
            self.steering.scale = self.steering.scale.to(text)
        self._computed_from = source

    @contextmanager
    def _separate_cache_contexts(self) -> Iterator[None]:
        """Rename the cache contexts of steered calls: a cache over steps has one state per name."""
        if not hasattr(self.model, "cache_context"):
            yield
            return
        original = self.model.cache_context

        def wrapper(name: str, **more: Any) -> AbstractContextManager[None]:
            steered = not self._calls.calls_in_step and self._calls.is_step_in(self._steps)
            context: AbstractContextManager[None] = original(f"{name} steered" if steered else name, **more)
            return context

        self.model.cache_context = wrapper
        try:
            yield
        finally:
            del self.model.cache_context


def _reject_incompatible_cache(steps: Container[int] | None, model: Any) -> None:
    """Reject a cache over steps that cannot separate steered from plain calls.

    Raises:
        ValueError: `steps` is limited and a cache other than FirstBlockCache is enabled.
    """
    cache = type(get_cache_config(model)).__name__
    if steps is not None and cache not in ("NoneType", "FirstBlockCacheConfig"):
        raise ValueError(
            f"steps: got {steps!r} with {cache} on; expected None. Call disable_cache(), or steer every step."
        )


@cache
def _parameter_names(forward: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


def _is_cross_attention(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "processor", None), SteeredAttnProcessor)


def _fingerprint_key_modules(layers: list[Any]) -> list[Any]:
    """Return a value that changes when the weights or adapters behind the layers' keys change."""
    parts = [getattr(layer, name, None) for layer in layers for name in KEY_MODULES]
    return [fingerprint_module(part) for part in parts if part is not None]
