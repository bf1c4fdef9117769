"""GPU models that the estimate knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_SITE = "https://www.nvidia.com/en-us/data-center"


@dataclass(frozen=True)
class Gpu:
    """A GPU by NVIDIA's data sheet at `source`: bytes of memory, and dense peak FLOP/s by precision.

    `usd_per_hour` is an eighth of the node's price in docs/data/prices.json, if one is listed there.
    """

    memory: float
    flops: Mapping[str, float]
    source: str
    usd_per_hour: float | None = None


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "A100-40GB": Gpu(40 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}, f"{_SITE}/a100/", 1.84),
        "A100-80GB": Gpu(80 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}, f"{_SITE}/a100/"),
        "H100": Gpu(80 * 2**30, {"float32": 67e12, "bfloat16": 989e12}, f"{_SITE}/h100/", 4.92),
        "H200": Gpu(141 * 10**9, {"float32": 67e12, "bfloat16": 989e12}, f"{_SITE}/h200/"),
        # HGX B200: an eighth of 1.44 TB, of 600 TFLOPS, and of 36 PFLOPS, which counts sparsity twofold.
        "B200": Gpu(180 * 10**9, {"float32": 75e12, "bfloat16": 2250e12}, f"{_SITE}/hgx/"),
    }
)
