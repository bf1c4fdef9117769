"""MUSIQ (arXiv 2108.05997): image quality from patches at three sizes.

The image in three sizes (longest side 224, 384 and the original) is cut into patches of 32 pixels. A small residual
network turns each into a token, to which embeddings of its position on a 10 x 10 grid and of its size are
added; a transformer's first token gives the score. Modules are named as in the checkpoint that is loaded.

B images or patches, C channels, H height, W width, L tokens, D features, N heads.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 32
SIDES = (224, 384)  # longest, of the two smaller sizes
GRID = 10
WIDTH, INNER, HEADS, LAYERS = 384, 1152, 6, 14
CHANNELS, GROUPS = 64, 32


def pad_same(x_BCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad with zeros as TensorFlow's `SAME`; an odd number puts the extra zero at the right and the bottom."""
    pad = []
    for length in (x_BCHW.shape[3], x_BCHW.shape[2]):
        missing = max(0, (math.ceil(length / stride) - 1) * stride + kernel - length)
        pad += [missing // 2, missing - missing // 2]
    return F.pad(x_BCHW, pad)


class StandardizedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1, with zeros around the image."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve with standardized weights."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(pad_same(x_BCHW, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


class Bottleneck(nn.Module):
    """The residual block of the patches' network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.gn1 = _build_convolution(inputs, inputs, 1)
        self.conv2, self.gn2 = _build_convolution(inputs, inputs, 3)
        self.conv3, self.gn3 = _build_convolution(inputs, outputs, 1)
        self.conv_proj, self.gn_proj = _build_convolution(inputs, outputs, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.gn1(self.conv1(x_BCHW)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(self.gn3(self.conv3(y)) + self.gn_proj(self.conv_proj(x_BCHW)))


def _build_convolution(inputs: int, outputs: int, kernel: int) -> tuple["StandardizedConv", nn.GroupNorm]:
    return StandardizedConv(inputs, outputs, kernel), nn.GroupNorm(GROUPS, outputs, eps=1e-4)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the output [B, L, D]."""
        q, k, v = (f(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y_BNLD = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.out(y_BNLD.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the output [B, L, D]."""
        output: Tensor = self.fc2(F.gelu(self.fc1(x_BLD)))
        return output


class Block(nn.Module):
    """A transformer block with pre-normalisation."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention, self.mlp = Attention(width, heads), Mlp(width, inner)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the output [B, L, D]."""
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD))
        output: Tensor = x_BLD + self.mlp(self.norm2(x_BLD))
        return output


class Encoder(nn.Module):
    """The transformer; it returns its first token."""

    def __init__(self, width: int, inner: int, heads: int, layers: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.posembed_input = nn.ParameterDict({"position_emb": nn.Parameter(torch.zeros(1, GRID * GRID, width))})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": nn.Parameter(torch.zeros(len(SIDES) + 1, width))})
        blocks = {f"encoderblock_{index}": Block(width, inner, heads) for index in range(layers)}
        self.transformer = nn.ModuleDict(blocks)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens_LD: Tensor, positions_L: Tensor, scale_indices_L: Tensor) -> Tensor:
        """Return the first token's features [D]."""
        position_table, scale_table = self.posembed_input["position_emb"], self.scaleembed_input["scale_emb"]
        embeddings_LD = position_table[0, positions_L] + scale_table[scale_indices_L]
        x_BLD = torch.cat([self.cls, (tokens_LD + embeddings_LD)[None]], dim=1)
        for block in self.transformer.values():
            x_BLD = block(x_BLD)
        first: Tensor = self.encoder_norm(x_BLD)[0, 0]
        return first


class Musiq(nn.Module):
    """MUSIQ: a score of 0 to 100 (SPAQ's scale) for one image."""

    def __init__(self, width: int = WIDTH, inner: int = INNER, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.conv_root = StandardizedConv(3, CHANNELS, 7, 2)
        self.gn_root = nn.GroupNorm(GROUPS, CHANNELS, eps=1e-6)
        self.block1 = Bottleneck(CHANNELS, 4 * CHANNELS)
        self.embedding = nn.Linear(4 * CHANNELS * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, inner, heads, layers)
        self.head = nn.Linear(width, 1)

    def forward(self, pixels_CHW: Tensor) -> Tensor:
        """Return a scalar, of pixels in 0..1 of any height and width."""
        patches, positions, scales = extract_multiscale_patches(2 * pixels_CHW - 1)
        x_BCHW = F.relu(self.gn_root(self.conv_root(patches)))
        x_BCHW = self.block1(F.max_pool2d(pad_same(x_BCHW, 3, 2), 3, 2))
        tokens_LD = self.embedding(x_BCHW.permute(0, 2, 3, 1).flatten(1))  # channels last, as in TensorFlow
        score: Tensor = self.head(self.transformer_encoder(tokens_LD, positions, scales))[0]
        return score


def extract_multiscale_patches(pixels_CHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all patches [L, C, 32, 32] of the three sizes, their grid positions [L] and the sizes' indices [L]."""
    height, width = pixels_CHW.shape[1:]
    sizes = [(round(height * side / max(height, width)), round(width * side / max(height, width))) for side in SIDES]
    resized = [F.interpolate(pixels_CHW[None], size, mode="bicubic", align_corners=False)[0] for size in sizes]
    parts = [extract_patches(image) for image in (*resized, pixels_CHW)]
    scales = [torch.full_like(positions, index) for index, (_, positions) in enumerate(parts)]
    return (
        torch.cat([patches for patches, _ in parts]),
        torch.cat([positions for _, positions in parts]),
        torch.cat(scales),
    )


def extract_patches(pixels_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return patches [L, C, 32, 32], row by row, and their positions on a 10 x 10 grid."""
    padded = pad_same(pixels_CHW[None], PATCH, PATCH)[0]
    cut_CHWhw = padded.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    rows, columns = (map_to_grid(count).to(pixels_CHW.device) for count in cut_CHWhw.shape[1:3])
    return cut_CHWhw.permute(1, 2, 0, 3, 4).flatten(0, 1), (rows[:, None] * GRID + columns).flatten()


def map_to_grid(count: int) -> Tensor:
    """Return [count]: the grid's 10 lines, resized to `count` by nearest neighbour."""
    return F.interpolate(torch.arange(float(GRID))[None, None], count, mode="nearest")[0, 0].long()


def infer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of a checkpoint from its shapes; the width of a head is always 64."""
    layers = [int(name.partition("encoderblock_")[2].partition(".")[0]) for name in tensors if "encoderblock_" in name]
    width = len(tensors["embedding.bias"])
    inner = len(tensors["transformer_encoder.transformer.encoderblock_0.mlp.fc1.bias"])
    return {"width": width, "inner": inner, "heads": width // (WIDTH // HEADS), "layers": 1 + max(layers)}
