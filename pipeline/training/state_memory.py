"""Bytes that one network's weights, gradients and optimizer states take on a worker, by ZeRO stage and offload.

Stages shard optimizer states (1), gradients (2) and weights (3) over the workers. What is offloaded is in host memory.
"""

from dataclasses import dataclass

from pipeline.recipe import Train
from pipeline.training.deepspeed_engine import GATHERED_AHEAD, KEPT_GATHERED, reduce_bucket_elements

FLOAT32, BFLOAT16, ADAM = 4.0, 2.0, 8.0  # bytes of an element; of Adam's two states of one


@dataclass(frozen=True)
class NetworkSize:
    """The numbers of a network's parameters and of those that are trained, and the bytes of one that is frozen."""

    parameters: int
    trained: int
    frozen_bytes: float = FLOAT32

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return FLOAT32 * self.trained + self.frozen_bytes * (self.parameters - self.trained)


def estimate_gpu_bytes(train: Train, size: NetworkSize) -> dict[str, float]:
    """Return the bytes of a worker's GPU by what they are for."""
    stage, shard = train.zero_stage, 1 / train.num_workers
    weights = size.weight_bytes
    if stage == 3:
        weights = 0.0 if train.offload_parameters else weights * shard
    on_gpu = 0.0 if train.offload_optimizer else 1.0
    gradients = FLOAT32 * size.trained * (shard * on_gpu if stage >= 2 else 1.0)
    return {
        "weights": weights,
        "gathered weights": _estimate_gathered(size) if stage == 3 else 0.0,
        "gradients": gradients,
        "reduce bucket": _estimate_bucket(train, size),
        "ZeRO float32 partition": FLOAT32 * size.trained * shard * on_gpu if stage else 0.0,
        "optimizer states": ADAM * size.trained * (shard * on_gpu if stage else 1.0),
    }


def estimate_host_bytes(train: Train, size: NetworkSize) -> float:
    """Return the bytes of host memory that a worker's offloaded states and weights take."""
    shard = 1 / train.num_workers
    optimizer = (FLOAT32 + FLOAT32 + ADAM) * size.trained * shard  # gradients, float32 partition, states
    return optimizer * train.offload_optimizer + size.weight_bytes * shard * train.offload_parameters


def _estimate_gathered(size: NetworkSize) -> float:
    """Return the bytes of the weights that ZeRO stage 3 holds whole at a time, at most all of them."""
    return size.weight_bytes * min(1.0, (GATHERED_AHEAD + KEPT_GATHERED) / size.parameters)


def _estimate_bucket(train: Train, size: NetworkSize) -> float:
    """Return the bytes of the reduce bucket, of a second one for overlap, and of a copy in the precision sent."""
    buckets = FLOAT32 * (2 if train.overlap_comm else 1)
    sent = BFLOAT16 if train.communication_precision == "bfloat16" else 0.0
    return (buckets + sent) * reduce_bucket_elements(size.trained)
