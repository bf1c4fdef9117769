"""An emulation of CUDA's autocast on the meta device, to estimate the memory of mixed precision on a CPU.

The three lists are those of PyTorch's page "Automatic Mixed Precision", section "CUDA Ops that can autocast to ...",
restricted to the operations that diffusers' denoisers and our losses use.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

REDUCED_PRECISION_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm),
    }
)
FLOAT32_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.layer_norm, F.group_norm, F.softmax, F.mse_loss, F.cosine_similarity, F.normalize),
        *(torch.softmax, torch.exp, torch.log, torch.pow, torch.sum, torch.norm, torch.logsumexp, torch.rsqrt),
        *(Tensor.softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum, Tensor.norm, Tensor.logsumexp, Tensor.rsqrt),
    }
)
WIDEST_INPUT_OPS: frozenset[Callable[..., Any]] = frozenset({torch.cat, torch.stack})

_observer: ContextVar[list[Tensor] | None] = ContextVar("weight_casts", default=None)


class MetaAutocast(TorchFunctionMode):
    """Casts the inputs of operations as CUDA's autocast does; `compute_dtype` float32 disables an outer context.

    A weight is cast once per context, as in CUDA's autocast cache.
    """

    def __init__(self, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = compute_dtype
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._weights.clear()
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            return func(*self._cast(func, args), **self._cast(func, dict(kwargs or {})))

    def _cast(self, func: Callable[..., Any], inputs: Any) -> Any:
        if self._dtype == torch.float32:
            return inputs
        if func in REDUCED_PRECISION_OPS:
            return _map_tensors(inputs, self._cast_to_compute_dtype)
        if func in FLOAT32_OPS:
            return _map_tensors(inputs, lambda tensor: tensor.float())
        if func in WIDEST_INPUT_OPS:
            has_float32 = any(tensor.dtype == torch.float32 for tensor in _iter_tensors(inputs))
            return _map_tensors(inputs, lambda tensor: tensor.float()) if has_float32 else inputs
        return inputs

    def _cast_to_compute_dtype(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self._dtype:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self._dtype)
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = tensor, tensor.to(self._dtype)
            if (observer := _observer.get()) is not None:
                observer.append(self._weights[id(tensor)][1])
        return self._weights[id(tensor)][1]


@contextmanager
def observe_weight_casts() -> Iterator[list[Tensor]]:
    """Yield a list that collects the result of every weight cast within the context."""
    casts: list[Tensor] = []
    token = _observer.set(casts)
    try:
        yield casts
    finally:
        _observer.reset(token)


def _map_tensors(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return cast(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _map_tensors(item, cast) for name, item in value.items()}
    return type(value)(_map_tensors(item, cast) for item in value) if isinstance(value, list | tuple) else value


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _iter_tensors(item)
