"""torchvision from PyPI beside a torch for CPUs alone: its operators do not load, and its import wants them."""

import torch

OPERATORS = (
    "nms",
    "qnms",
    *(f"{name}roi_{kind}" for name in ("", "ps_") for kind in ("align", "pool")),
    "deform_conv2d",
)


def define_operators() -> None:
    for name in OPERATORS:
        for each in (name, f"_{name}_backward"):
            if not hasattr(torch.ops.torchvision, each):
                torch.library.define(f"torchvision::{each}", "(Tensor x) -> Tensor")
