"""Images, prompts and weights that numpy generates from seeds, the same in every environment."""

import functools
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZES = {
    "square": (512, 512),
    "exact": (224, 224),
    "tall": (320, 512),
    "wide": (600, 333),
    "tiny": (5, 3),
    "4k": (3840, 2160),
    "grey": (300, 200),
    "transparent": (257, 256),
}
PROMPTS = {
    "plain": "A cat with two horns on its head",
    "long": "a very detailed oil painting of a lighthouse, " * 20,
    "unicode": "Ünïcödé: 日本語のテキスト, schÃ¶n &amp;amp; â€œquotedâ€\x9d it's",
    "emoji": "👩🏽‍🎤 sings for 🏳️‍🌈 ❤️",
    "empty": "",
}


@functools.cache
def make_image(name: str) -> Image.Image:
    """Return an image of coloured blocks, a gradient and noise."""
    width, height = SIZES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    blocks = (rng.integers(0, 256, (6, 7, 4)) // 2).astype(np.uint8)
    line = blocks[:, np.arange(width) * 7 // width] + np.linspace(0, 80, width).astype(np.uint8)[None, :, None]
    pixels = line[np.arange(height) * 6 // height]  # at most 127 + 80 + 47
    pixels += rng.integers(0, 48, (height, width, 1)).astype(np.uint8)
    if name == "grey":
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels if name == "transparent" else np.ascontiguousarray(pixels[..., :3]))


def build_clip_layout(config: dict) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of open_clip's tensors for a configuration in open_clip's format."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    num_positions = (vision["image_size"] // patch) ** 2 + 1
    return {
        "logit_scale": (),
        "positional_embedding": (text["context_length"], text["width"]),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        "text_projection": (text["width"], embed),
        "ln_final.weight": (text["width"],),
        "ln_final.bias": (text["width"],),
        **_build_blocks("", text["width"], text["layers"], 4 * text["width"]),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (num_positions, width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.proj": (width, embed),
        **{f"visual.{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        **_build_blocks("visual.", width, vision["layers"], int(width * vision.get("mlp_ratio", 4))),
    }


def _build_blocks(prefix: str, width: int, layers: int, inner: int) -> dict[str, tuple[int, ...]]:
    parts = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
    }
    return {
        f"{prefix}transformer.resblocks.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in parts.items()
    }


def make_weights(layout: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(_draw_weight(name, shape, seed)) for name, shape in layout.items()}


def _draw_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a tensor with a deviation of 1 / sqrt(inputs), or norms about 1, so that every layer has an effect."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = rng.random(shape, dtype=np.float32)
    drawn -= np.float32(0.5)
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 16
    drawn *= np.float32(3.4 * (1.5 / inputs) ** 0.5)
    is_norm = name.endswith(".weight") and len(shape) == 1
    return drawn + np.float32(1) if is_norm else np.asarray(drawn)


def save_checkpoint(layout: dict[str, tuple[int, ...]], file: Path, seed: int = 0) -> Path:
    """Write a checkpoint in open_clip's format."""
    torch.save({"state_dict": make_weights(layout, seed)}, file)
    return file
