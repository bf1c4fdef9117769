"""A ComfyUI node that steers a UNet's cross-attention away from a negative prompt, in one pass and without guidance.

NASA, arXiv 2412.02687, eq. 9: Z = Z+ - alpha Z-. It needs nothing but ComfyUI and torch.
B batch, L image tokens, T text tokens, D features of all heads together.
"""

import re
from dataclasses import dataclass

import torch

RULES = ("nasa", "nag", "vsf")
NAG_TAU, NAG_BLEND = 2.5, 0.375  # its authors' values for Stable Diffusion 1.5
CONDITIONAL = 0  # the positive prompt's number in ComfyUI's `cond_or_uncond`
LAYER = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.\d+)?\.transformer_blocks\.(\d+)")


@dataclass(frozen=True)
class Settings:
    """The rule, its scale, and the range of sigmas in which it acts, both ends included."""

    rule: str
    scale: float
    first_sigma: float
    last_sigma: float


class NASANegativePrompt:
    """Return a model whose cross-attention subtracts that of a negative prompt.

    Only rows of the positive prompt are steered, so that it also works below classifier-free guidance.
    """

    CATEGORY = "model_patches/unet"
    DESCRIPTION = "A negative prompt for one-step and few-step models: Z = Z+ - scale Z-, at cfg 1.0."
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """Return the inputs as ComfyUI declares them."""
        percent = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "scale": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 10.0, "step": 0.01}),
                "rule": (list(RULES), {"default": "nasa"}),
                "start_percent": ("FLOAT", {"default": 0.0, **percent}),
                "end_percent": ("FLOAT", {"default": 1.0, **percent}),
            }
        }

    def apply(self, model, clip, text, scale, rule, start_percent, end_percent):
        """Return a clone of the model with a replacement of each cross-attention; the given one stays as it is."""
        patched = model.clone()
        if scale == 0:
            return (patched,)
        sampling = model.get_model_object("model_sampling")
        first, last = (float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
        settings = Settings(rule, scale, first, last)
        negative_1TD = clip.encode_from_tokens(clip.tokenize(text))
        earlier = dict(model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {}))
        for (block, number, index), attn in find_layers(model.model.diffusion_model):
            replaced = earlier.get((block, number, index), earlier.get((block, number)))
            patch = build_patch(attn, negative_1TD, settings, replaced)
            patched.set_model_attn2_replace(patch, block, number, index)
        return (patched,)


def find_layers(unet):
    """Return the cross-attention layers of a UNet with their position: block, number, and index within the block.

    Raises:
        ValueError: The model has none.
    """
    layers = []
    for name, module in unet.named_modules():
        match = LAYER.fullmatch(name)
        if match and getattr(module, "attn2", None) is not None:
            side = match[1].partition("_")[0]
            number = 0 if side == "middle" else int(match[2])
            layers.append(((side, number, int(match[3])), module.attn2))
    if not layers:
        raise ValueError(f"model: got {type(unet).__name__}; expected a UNet of Stable Diffusion 1.x, 2.x or XL.")
    return layers


def build_patch(attn, negative_1TD, settings, replaced=None):
    """Return a replacement of one cross-attention layer, before its output projection.

    It is a function, as ComfyUI deep-copies the objects among a model's options. `replaced` is an earlier node's
    replacement of the layer, whose output takes the place of Z+.

    Raises:
        ValueError: The rule is "vsf", which needs Z+ itself, and the layer is replaced already.
    """
    if replaced and settings.rule == "vsf":
        raise ValueError("rule: got 'vsf' for a model with another attention patch; expected 'nasa' or 'nag'.")

    def patch(q_BLD, k_BTD, v_BTD, extra_options):
        z_BLD = (replaced or attend)(q_BLD, k_BTD, v_BTD, extra_options)
        sigma = float(extra_options["sigmas"][0])
        rows = select_conditional_rows(len(q_BLD), extra_options)
        if not rows or not settings.last_sigma <= sigma <= settings.first_sigma:
            return z_BLD
        negative = negative_1TD.to(q_BLD).expand(len(rows), -1, -1)
        positive = (z_BLD[rows], k_BTD[rows], v_BTD[rows])
        steered = steer(q_BLD[rows], positive, (attn.to_k(negative), attn.to_v(negative)), settings, extra_options)
        return z_BLD.index_copy(0, torch.tensor(rows, device=z_BLD.device), steered)

    return patch


def select_conditional_rows(batch, extra_options):
    """Return the numbers of the batch's rows that belong to the positive prompt."""
    parts = extra_options.get("cond_or_uncond", [CONDITIONAL])
    size = batch // len(parts)
    return [part * size + row for part, kind in enumerate(parts) if kind == CONDITIONAL for row in range(size)]


def steer(q_BLD, positive, negative, settings, extra_options):
    """Return the rule's output; `positive` is Z+, K+ and V+, and `negative` K- and V-."""
    (z_BLD, k_BTD, v_BTD), (negative_k, negative_v) = positive, negative
    if settings.rule == "vsf":
        v_BTD = torch.cat([v_BTD, -settings.scale * negative_v], dim=1)
        return attend(q_BLD, torch.cat([k_BTD, negative_k], dim=1), v_BTD, extra_options)
    z_neg_BLD = attend(q_BLD, negative_k, negative_v, extra_options)
    if settings.rule == "nag":
        return apply_nag(z_BLD, z_neg_BLD, settings.scale)
    return z_BLD - settings.scale * z_neg_BLD


def apply_nag(z_pos_BLD, z_neg_BLD, scale):
    """Apply Normalized Attention Guidance (arXiv 2505.21179): extrapolate, bound each token's L1 norm, blend."""
    extrapolated = z_pos_BLD + scale * (z_pos_BLD - z_neg_BLD)
    ratio = extrapolated.abs().sum(-1, keepdim=True) / z_pos_BLD.abs().sum(-1, keepdim=True)
    bounded = extrapolated * (ratio.clamp(max=NAG_TAU) / ratio)
    return NAG_BLEND * bounded + (1 - NAG_BLEND) * z_pos_BLD


def attend(q_BLD, k_BTD, v_BTD, extra_options):
    """Return the attention that ComfyUI was started with, [B, L, D]."""
    from comfy.ldm.modules.attention import optimized_attention

    options = {"attn_precision": extra_options.get("attn_precision"), "transformer_options": extra_options}
    return optimized_attention(q_BLD, k_BTD, v_BTD, extra_options["n_heads"], **options)
