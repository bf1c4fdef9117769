"""CUDA's autocast on the meta device, which has none: dtypes and kept tensors of a GPU's mixed precision, on a CPU.

The three lists are those of PyTorch's page "Automatic Mixed Precision", section "CUDA Ops that can autocast to ...",
for the operations that diffusers' denoisers and our losses use.
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

REDUCED: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.baddbmm),
    }
)
FLOAT32: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.layer_norm, F.group_norm, F.softmax, F.mse_loss, F.cosine_similarity, F.normalize),
        *(torch.softmax, torch.exp, torch.log, torch.pow, torch.sum, torch.norm, torch.logsumexp, torch.rsqrt),
        *(Tensor.softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum, Tensor.norm, Tensor.logsumexp, Tensor.rsqrt),
    }
)
WIDEST: frozenset[Callable[..., Any]] = frozenset({torch.cat, torch.stack})

_observer: ContextVar[list[Tensor] | None] = ContextVar("weight_casts", default=None)


class MetaAutocast(TorchFunctionMode):
    """Cast the inputs of operations as CUDA's autocast does; float32 as `compute_dtype` turns an outer one off.

    A weight is cast once and shared by all its uses until the context ends, as CUDA's cache does.
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
        if func in REDUCED:
            return _over(inputs, self._reduced)
        if func in FLOAT32:
            return _over(inputs, lambda tensor: tensor.float())
        if func in WIDEST:
            wide = any(tensor.dtype == torch.float32 for tensor in _tensors(inputs))
            return _over(inputs, lambda tensor: tensor.float()) if wide else inputs
        return inputs

    def _reduced(self, tensor: Tensor) -> Tensor:
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
def observed_weight_casts() -> Iterator[list[Tensor]]:
    """Yield a list to which every weight that is cast within the context is added, as it was cast."""
    casts: list[Tensor] = []
    token = _observer.set(casts)
    try:
        yield casts
    finally:
        _observer.reset(token)


def _over(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return cast(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _over(each, cast) for name, each in value.items()}
    return type(value)(_over(each, cast) for each in value) if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
