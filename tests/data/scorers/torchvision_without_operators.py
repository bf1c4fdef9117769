"""A workaround for torchvision from PyPI beside a CPU-only torch, whose operators it cannot load but imports."""

import torch

OPERATORS = (
    "nms",
    "qnms",
    *(f"{name}roi_{kind}" for name in ("", "ps_") for kind in ("align", "pool")),
    "deform_conv2d",
)


def define_operators() -> None:
    for name in OPERATORS:
        for operator in (name, f"_{name}_backward"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(f"torchvision::{operator}", "(Tensor x) -> Tensor")
