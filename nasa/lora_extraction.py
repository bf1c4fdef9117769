"""Extraction of a LoRA from a fully trained student: its difference from its teacher, each layer truncated by SVD."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasa.lora import LORA_A, LORA_B


@dataclass(frozen=True)
class LayerFit:
    """The rank of a layer's adapter, and Frobenius norms of the layer's difference and of what the adapter leaves."""

    rank: int
    norm: float
    residual: float

    @property
    def relative_error(self) -> float:
        """The residual's share of the norm."""
        return self.residual / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class ExtractedLora:
    """A LoRA that approximates the difference of two models.

    Attributes:
        weights: the adapters' matrices in float32, as `nasa.lora.collect_adapters` names them.
        layers: how well each changed layer is approximated.
        omitted_norm: Frobenius norm of the difference of the parameters that no LoRA holds: biases, norms and tables.
    """

    weights: Mapping[str, Tensor]
    layers: Mapping[str, LayerFit]
    omitted_norm: float

    @property
    def relative_error(self) -> float:
        """The residual of all layers together, relative to their difference."""
        return _divide(self._residual, self._norm)

    @property
    def total_relative_error(self) -> float:
        """The same with the omitted parameters: how much of the student is lost."""
        return _divide(math.hypot(self._residual, self.omitted_norm), math.hypot(self._norm, self.omitted_norm))

    @property
    def omitted_share(self) -> float:
        """The omitted parameters' difference, relative to that of all parameters."""
        return _divide(self.omitted_norm, math.hypot(self._norm, self.omitted_norm))

    @property
    def worst_layer(self) -> str:
        """The name of the layer with the largest relative error; empty if no layer differs."""
        return max(self.layers, key=lambda name: self.layers[name].relative_error, default="")

    @property
    def _norm(self) -> float:
        return math.hypot(*(fit.norm for fit in self.layers.values()))

    @property
    def _residual(self) -> float:
        return math.hypot(*(fit.residual for fit in self.layers.values()))


def list_lora_layers(denoiser: nn.Module) -> list[str]:
    """Return the names of the layers that an adapter can change: linear layers and convolutions of one group."""
    return [
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]


@torch.no_grad()
def extract_lora(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], rank: int, layers: Collection[str]
) -> ExtractedLora:
    """Return the LoRA of this rank that is nearest to the difference student - teacher in the Frobenius norm.

    Args:
        student: the student's weights by name.
        teacher: the teacher's weights, with the same names and shapes.
        rank: the largest rank of an adapter; a smaller layer has its own rank.
        layers: the layers that get an adapter, as `list_lora_layers` returns them.

    Raises:
        ValueError: The rank is below 1, or a difference is not finite.
    """
    if rank < 1:
        raise ValueError(f"rank: got {rank}; expected 1 or more.")
    adapted = {f"{name}.weight" for name in layers}
    weights: dict[str, Tensor] = {}
    fits: dict[str, LayerFit] = {}
    omitted = []
    for name, value in student.items():
        difference = value.double() - teacher[name].double()
        norm = float(difference.norm())
        if not math.isfinite(norm):
            raise ValueError(f"{name}: got a difference of norm {norm}; expected a finite one.")
        if name not in adapted:
            omitted.append(norm)
        elif norm:
            layer = name.removesuffix(".weight")
            lora_A, lora_B = factorize(difference, rank)
            weights |= {layer + LORA_A: lora_A, layer + LORA_B: lora_B}
            fits[layer] = LayerFit(len(lora_A), norm, _measure_residual(difference, lora_A, lora_B))
    return ExtractedLora(weights, fits, math.hypot(*omitted))


def factorize(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the float32 matrices A and B of a layer, of equal norms, so that half precision can hold both.

    A k x k convolution is a k x k convolution to `rank` channels, A [R, I, K, K], and a 1 x 1 one, B [O, R, 1, 1].
    """
    lora_B, lora_A = truncate_svd(difference.flatten(1), rank)
    balance = (lora_A.norm() / lora_B.norm()).sqrt()
    shape_A = len(lora_A), *difference.shape[1:]
    shape_B = len(difference), len(lora_A), *[1] * (difference.ndim - 2)
    lora_A, lora_B = (lora_A / balance).reshape(shape_A), (lora_B * balance).reshape(shape_B)
    return lora_A.float().contiguous(), lora_B.float().contiguous()


def truncate_svd(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B [O, R] and A [R, I] in float64, of which B A is the matrix of this rank nearest to the given one.

    Eckart-Young: B A = U U^T M, where U holds the first R left singular vectors. They are the eigenvectors of
    M M^T, or the right ones of M^T M if that is smaller: cheaper than the SVD of a convolution's wide matrix.
    """
    matrix_OI = matrix_OI.double()
    rank = min(rank, *matrix_OI.shape)
    if matrix_OI.shape[0] > matrix_OI.shape[1]:
        lora_A, lora_B = truncate_svd(matrix_OI.T, rank)
        return lora_B.T, lora_A.T
    vectors_OO = torch.linalg.eigh(matrix_OI @ matrix_OI.T).eigenvectors  # by ascending eigenvalue
    U_OR = vectors_OO[:, -rank:]
    return U_OR, U_OR.T @ matrix_OI


def _measure_residual(difference: Tensor, lora_A: Tensor, lora_B: Tensor) -> float:
    """Return the norm of what the float32 matrices leave of a difference."""
    product = lora_B.double().flatten(1) @ lora_A.double().flatten(1)
    return float((difference.flatten(1) - product).norm())


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
