"""GPU models that the estimate knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Gpu:
    """A GPU by NVIDIA's data sheet: bytes of memory, and dense peak FLOP/s by precision.

    `usd_per_hour` is an eighth of the node's price in docs/data/prices.json, if one is listed there.
    """

    memory: float
    flops: Mapping[str, float]
    usd_per_hour: float | None = None


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "A100-40GB": Gpu(40 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}, 1.84),
        "A100-80GB": Gpu(80 * 2**30, {"float32": 19.5e12, "bfloat16": 312e12}),
        "H100": Gpu(80 * 2**30, {"float32": 67e12, "bfloat16": 989e12}, 4.92),
        "H200": Gpu(141 * 10**9, {"float32": 67e12, "bfloat16": 989e12}),
    }
)
