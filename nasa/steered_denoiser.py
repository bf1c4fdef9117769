"""One denoiser while a `steer` block is open: before each call it gets the negative and the rows to steer."""

import inspect
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from nasa.attention import SteeredAttnProcessor, install, per_image
from nasa.calls import PipelineCalls, running_pipeline
from nasa.compat import cache_config, offload_hook, original_module
from nasa.conditional import Layout, Split, split
from nasa.families import Family
from nasa.joint import install_joint
from nasa.lora import lora_scale, module_state, scaled
from nasa.negative import NegativePrompt

KEY_PARTS = ("to_k", "to_v", "to_kv", "norm_k", "norm_cross")  # of an attention layer
_OPEN: WeakSet[nn.Module] = WeakSet()  # the denoisers of all open blocks


class SteeredDenoiser:
    """A denoiser with its steering, the pipeline's calls that are followed, and the negative.

    K- and V- of each cross-attention layer are computed once for as long as the negative, the LoRA scale of the call
    and the layers' weights stay what they are.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        steering: Any,
        calls: PipelineCalls,
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
    def installed(self, layers: Callable[[str], bool]) -> Iterator[None]:
        """Install the steering processors inside the context, and restore the former ones afterwards."""
        base = original_module(self.model)
        if base in _OPEN:
            raise ValueError(
                f"pipe: got a {type(base).__name__} that is being steered; expected one block at a time. "
                "Leave the other block first."
            )
        before = self._install(layers)
        self._attention = [layer for layer in self.model.modules() if _is_cross_attention(layer)]
        _OPEN.add(base)
        hook = self.model.register_forward_pre_hook(self, with_kwargs=True)
        try:
            with self._apart_in_caches():
                yield
        finally:
            hook.remove()
            _OPEN.discard(base)
            self.model.set_attn_processor(before)

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Prepare a call of the denoiser: a forward pre-hook, which may change the arguments."""
        arguments = {**dict(zip(_parameters(type(original_module(model)).forward), args, strict=False)), **kwargs}
        self._refuse_another_pipeline()
        if self._steps is not None or self._calls.any_caller:
            self._calls.calling(arguments["timestep"])
        self.steering.active = self._is_steered(arguments)
        self._calls.called()
        if self.steering.plain:
            return None
        self.steered = True
        if self._family.extend is None:
            return None
        return (), {**arguments, **self._extend(arguments)}

    def _refuse_another_pipeline(self) -> None:
        other = running_pipeline()
        if other is not None and other is not self._calls.pipe and not self._calls.any_caller:
            raise ValueError(
                f"pipe: got a call of {type(other).__name__} while its denoiser is steered for another pipeline; "
                f"expected calls of that {type(self._calls.pipe).__name__}. Open the block on the one that is called."
            )

    def _is_steered(self, arguments: dict[str, Any]) -> bool:
        """Whether this call is; where it is, what the layers need is prepared."""
        self._negative.encode_by_default()
        if self._negative.embeds is None or not self._calls.is_in(self._steps):
            return False
        latents = _latents(arguments)
        self.steering.split = self._split(latents)
        if self.steering.split is not None and not len(self.steering.split.conditional):
            return False
        self._prepare(self._negative.embeds.to(latents), lora_scale(arguments))
        return True

    def _split(self, latents: Tensor) -> Split | None:
        return split(self._layout(self._calls.now(len(latents))), len(latents), latents.device)

    def _extend(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Every row gets the negative's tokens; those of a row that is not conditional are seen by no image."""
        assert self._family.extend is not None
        positive = arguments["encoder_hidden_states"]

        def for_each(part: Tensor) -> Tensor:
            chosen = self.steering.split
            if chosen is None:
                return per_image(part, len(positive))
            rows = part[:1].expand(len(positive), *part.shape[1:]).clone()
            rows[chosen.conditional] = per_image(part, len(chosen.conditional)).to(rows)
            return rows

        text, mask = for_each(self.steering.embeds_NTD), self.steering.mask_NT
        self.steering.positive_tokens = positive.shape[1]
        return self._family.extend(arguments, text.to(positive), None if mask is None else for_each(mask))

    @torch.no_grad()
    def _prepare(self, embeds: Tensor, adapter_scale: float) -> None:
        """Project the text and compute K- and V- of each cross-attention layer.

        An offloaded model comes to the device first; a layer whose weights stay away computes its keys in each call.
        """
        source = (self._negative.version, embeds.device, embeds.dtype, adapter_scale, _state(self._attention))
        if self.steering.embeds_NTD is not None and source == self._computed_from:
            return
        offloaded = offload_hook(self.model)
        if offloaded is not None:
            offloaded.pre_forward(self.model)
        with scaled([self.model], adapter_scale):
            text = self._family.project(self.model, embeds)
            for layer in filter(_is_cross_attention, self._attention):
                here = next(layer.parameters()).device == text.device
                layer.processor.negative_keys = layer.processor.keys(layer, text) if here else None
        self.steering.embeds_NTD, self.steering.mask_NT = text, self._negative.mask
        if isinstance(self.steering.scale, Tensor):
            self.steering.scale = self.steering.scale.to(text)
        self._computed_from = source

    def _install(self, layers: Callable[[str], bool]) -> dict[str, Any]:
        if self._family.extend:
            return install_joint(self.model, self.steering, layers)
        return install(self.model, self.steering, layers=layers, norm_across_heads=self._family.norm_across_heads)

    @contextmanager
    def _apart_in_caches(self) -> Iterator[None]:
        """Give steered calls names of their own in a cache over steps, which keeps a state per name."""
        if not hasattr(self.model, "cache_context"):
            yield
            return
        plain = self.model.cache_context

        def renamed(name: str, **more: Any) -> AbstractContextManager[None]:
            steered = not self._calls.calls_in_step and self._calls.is_in(self._steps)
            context: AbstractContextManager[None] = plain(f"{name} steered" if steered else name, **more)
            return context

        self.model.cache_context = renamed
        try:
            yield
        finally:
            del self.model.cache_context


def refuse_cache_with(steps: Container[int] | None, model: Any) -> None:
    """Other caches than the first block's keep one state for all calls, or count them.

    Raises:
        ValueError: where steps are limited and such a cache is on.
    """
    cache = type(cache_config(model)).__name__
    if steps is not None and cache not in ("NoneType", "FirstBlockCacheConfig"):
        raise ValueError(
            f"steps: got {steps!r} with {cache} on; expected None. Call disable_cache(), or steer every step."
        )


@cache
def _parameters(forward: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


def _latents(arguments: dict[str, Any]) -> Tensor:
    latents: Tensor = arguments["sample"] if "sample" in arguments else arguments["hidden_states"]
    return latents


def _is_cross_attention(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "processor", None), SteeredAttnProcessor)


def _state(layers: list[Any]) -> list[Any]:
    """Return what changes when the weights or adapters behind a layer's keys change."""
    parts = [getattr(layer, name, None) for layer in layers for name in KEY_PARTS]
    return [module_state(part) for part in parts if part is not None]
