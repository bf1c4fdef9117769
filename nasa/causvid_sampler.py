"""CausVid's sampler: a causal Wan 2.1 that generates blocks of frames in a few steps each, with a KV cache.

Section 4.2 of arXiv 2412.07772 and the authors' released sampler. The weights are those of a CausVid student in Wan's
diffusers layout.
B batch, C channels, F latent frames, S tokens, D features, H heads, K features of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from nasa.attention import attend, merge_heads, split_heads

TIMESTEPS = (1000, 757, 522)  # timesteps of the released student; 1000 sigma
FRAMES_PER_BLOCK = 3  # latent frames
SELF_ATTENTION_SUFFIX = "attn1.processor"
Rotation = tuple[Tensor, Tensor]


@dataclass
class KVCache:
    """Keys and values of the finished frames, [B, H, S, K] per layer; recorded while `is_recording`."""

    num_frames: int = 0
    is_recording: bool = False
    keys: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@torch.no_grad()
def generate_video(  # noqa: PLR0913
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    height: int = 480,
    width: int = 832,
    num_frames: int = 81,
    timesteps: Sequence[float] = TIMESTEPS,
    frames_per_block: int = FRAMES_PER_BLOCK,
    max_sequence_length: int = 512,
    generator: torch.Generator | None = None,
    latents: Tensor | None = None,
    output_type: str = "np",
) -> Any:
    """Generate videos with a `WanPipeline` that has a CausVid student; "latent" returns latents [B, C, F, H, W].

    Each block starts from noise and attends to the finished frames. After its last step it is run once more at
    timestep 0 to record its keys and values in the cache. Works inside `nasa.steer`.

    Raises:
        ValueError: The latent frames are not a multiple of `frames_per_block`, or the timesteps do not decrease.
    """
    is_decreasing = list(timesteps) == sorted(timesteps, reverse=True)
    if not timesteps or not is_decreasing or not (timesteps[-1] > 0 and timesteps[0] <= 1000):
        raise ValueError(f"timesteps: got {tuple(timesteps)}; expected decreasing numbers above 0 and at most 1000.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    pipe.check_inputs(prompts, None, height, width)  # marks the start of a call for nasa.steer
    device = pipe._execution_device
    embeds, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=device, max_sequence_length=max_sequence_length
    )
    embeds = embeds.to(pipe.transformer.dtype)
    noise = pipe.prepare_latents(
        len(prompts),
        pipe.transformer.config.in_channels,
        height,
        width,
        num_frames,
        torch.float32,
        device,
        generator,
        latents,
    )
    if noise.shape[2] % frames_per_block:
        raise ValueError(
            f"num_frames: got {num_frames}, {noise.shape[2]} latent frames; expected a multiple of {frames_per_block}."
        )
    pipe._num_timesteps = len(timesteps) + 1  # calls per block, for `steps` of nasa.steer
    sigmas = [timestep / 1000 for timestep in timesteps]
    with use_causal_attention(pipe.transformer) as cache:
        blocks = [
            _generate_block(pipe.transformer, cache, part, embeds, sigmas, generator)
            for part in noise.split(frames_per_block, 2)
        ]
    video = _decode(pipe, torch.cat(blocks, dim=2), output_type)
    pipe.maybe_free_model_hooks()
    return video


def _generate_block(
    model: Any,
    cache: KVCache,
    noise: Tensor,
    embeds: Tensor,
    sigmas: Sequence[float],
    generator: torch.Generator | None,
) -> Tensor:
    """Generate one block of frames, [B, C, F, H, W], and add it to the cache."""
    x = noise
    for index, sigma in enumerate(sigmas):
        if index:
            x = (1 - sigma) * x + sigma * randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x - sigma * _predict_velocity(model, x, sigma, embeds)
    cache.is_recording = True
    _predict_velocity(model, x, 0.0, embeds)
    cache.is_recording = False
    cache.num_frames += x.shape[2]
    return x


def _predict_velocity(model: Any, x: Tensor, sigma: float, embeds: Tensor) -> Tensor:
    """Return the velocity v = noise - x0 at x = (1 - sigma) x0 + sigma noise; the timestep is 1000 sigma."""
    timestep_B = torch.full((len(x),), 1000 * sigma, device=x.device)
    output: Tensor = model(
        hidden_states=x.to(embeds.dtype), timestep=timestep_B, encoder_hidden_states=embeds, return_dict=False
    )[0]
    return output.to(x)


class CausalAttnProcessor:
    """Self-attention of a block's frames over themselves and the cached frames."""

    def __init__(self, name: str, cache: KVCache) -> None:
        self.name, self.cache = name, cache

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """Attend to the cached frames and to the block itself."""
        assert encoder_hidden_states is None, "a self-attention layer"
        assert rotary_emb is not None
        rotary = [part[:, -hidden_states.shape[1] :].transpose(1, 2) for part in rotary_emb]
        query = rotate(split_heads(attn, attn.norm_q(attn.to_q(hidden_states))), *rotary)
        key = rotate(split_heads(attn, attn.norm_k(attn.to_k(hidden_states))), *rotary)
        value = split_heads(attn, attn.to_v(hidden_states))
        if self.name in self.cache.keys:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.cache.keys[self.name], (key, value), strict=True))
        if self.cache.is_recording:
            self.cache.keys[self.name] = (key, value)
        output: Tensor = attn.to_out[1](attn.to_out[0](merge_heads(attend(query, key, value, None))))
        return output


def rotate(x_BHSK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embedding to pairs of features; `cos` and `sin` are [1, 1, S, K], each value twice."""
    even, odd = x_BHSK.float().view(*x_BHSK.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x_BHSK)


@contextmanager
def use_causal_attention(model: Any) -> Iterator[KVCache]:
    """Make the model's self-attention use a cache, with frame positions that continue, inside the context."""
    cache, original_processors = KVCache(), dict(model.attn_processors)
    causal_processors = {
        name: CausalAttnProcessor(name, cache) if name.endswith(SELF_ATTENTION_SUFFIX) else processor
        for name, processor in original_processors.items()
    }
    plain = model.rope.forward

    def rope_with_offset(hidden_states: Tensor) -> Rotation:
        batch, channels, frames, *size = hidden_states.shape
        rotation: Rotation = plain(torch.empty(batch, channels, cache.num_frames + frames, *size, device="meta"))
        return rotation

    model.set_attn_processor(causal_processors)
    model.rope.forward = rope_with_offset
    try:
        yield cache
    finally:
        del model.rope.forward
        model.set_attn_processor(original_processors)


def _decode(pipe: Any, latents: Tensor, output_type: str) -> Any:
    if output_type == "latent":
        return latents
    config = pipe.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    latents = (latents * std.to(latents) + mean.to(latents)).to(pipe.vae.dtype)
    return pipe.video_processor.postprocess_video(
        pipe.vae.decode(latents, return_dict=False)[0], output_type=output_type
    )
