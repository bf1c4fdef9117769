"""The part of ComfyUI that the node uses, as recorded: by the fake for the default tests, and by ComfyUI itself."""

import inspect

import torch

BATCH, CHANNELS = 2, 4
CONTRACT = {
    "clone": ["self"],
    "get_model_object": ["self", "name"],
    "set_model_attn2_replace": ["self", "patch", "block_name", "number", "transformer_index"],
    "optimized_attention": ["q", "k", "v", "heads", "attn_precision", "transformer_options"],
    "tokenize": ["self", "text"],
    "encode_from_tokens": ["self", "tokens"],
    "percent_to_sigma": {"0.0": 999999999.9, "0.5": 1.61558, "1.0": 0.0},
    "arguments": ["Tensor", "Tensor", "Tensor", "dict"],
    "shapes": [[2 * BATCH, 3], [2 * BATCH, 3], [2 * BATCH, 3]],  # rows and number of axes of q, k and v
    "cond_or_uncond": [1, 0],
    "sigmas": [BATCH],
    "extra_options": ["attn_precision", "block", "cond_or_uncond", "n_heads", "sigmas"],
    "key_of_a_replacement": ["str", "int", "int"],
    "other_clones_are_untouched": True,
}


class Probe:
    """Records what a replacement of cross-attention is called with."""

    def __init__(self):
        self.calls = []

    def build(self, n_heads):
        def patch(q, k, v, extra_options):
            self.calls.append((q, k, v, dict(extra_options)))
            return v.new_zeros(q.shape)

        return patch


def record(patcher, probed, probe, clip_class, attention):
    """Return the facts of `CONTRACT`; `probed` is a clone with the probe, after a step under guidance."""
    arguments = probe.calls[0]
    options = arguments[3]
    (key, *_) = probed.model_options["transformer_options"]["patches_replace"]["attn2"]
    sampling = patcher.get_model_object("model_sampling")
    names = {
        name: list(inspect.signature(getattr(type(patcher), name)).parameters)
        for name in ("clone", "get_model_object", "set_model_attn2_replace")
    }
    clip = {
        name: list(inspect.signature(getattr(clip_class, name)).parameters)[:2]
        for name in ("tokenize", "encode_from_tokens")
    }
    return {
        **names,
        **clip,
        "optimized_attention": list_accepted(attention, CONTRACT["optimized_attention"]),
        "percent_to_sigma": {
            percent: round(float(sampling.percent_to_sigma(float(percent))), 5)
            for percent in CONTRACT["percent_to_sigma"]
        },
        "arguments": [type(argument).__name__ for argument in arguments],
        "shapes": [[len(tensor), tensor.ndim] for tensor in arguments[:3]],
        "cond_or_uncond": list(options["cond_or_uncond"]),
        "sigmas": list(options["sigmas"].shape),
        "extra_options": [name for name in CONTRACT["extra_options"] if name in options],
        "key_of_a_replacement": [type(part).__name__ for part in key],
        "other_clones_are_untouched": "patches_replace" not in patcher.model_options["transformer_options"],
    }


def list_accepted(function, names):
    """Return the arguments that a function takes by these names."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in names if name in parameters or takes_any]


def list_layers(unet):
    """Return what the node takes from a layer: the projections of keys and values."""
    block = next(module for module in unet.modules() if getattr(module, "attn2", None) is not None)
    return [
        name for name in ("to_q", "to_k", "to_v", "to_out") if isinstance(getattr(block.attn2, name), torch.nn.Module)
    ]
