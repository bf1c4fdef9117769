"""The training loop of the bundled models: a resumed run equals an uninterrupted one, and the loss falls."""

import pytest
import torch
from torch import nn

from pipeline.shapes_training.muon import orthogonalize
from pipeline.shapes_training.training_loop import fit

STEPS = 8


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3))


def build_loss(net):
    def loss(step):
        if step == getattr(net, "stop_at", None):
            raise KeyboardInterrupt
        ids = torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
        return nn.functional.cross_entropy(net(ids), ids % 3)

    return loss


def train(net, file, **overrides):
    fit(
        net, build_loss(net), **{"steps": STEPS, "learning_rate": 0.05, "state_file": file, "save_every": 2} | overrides
    )
    return net.state_dict()


def test_a_resumed_fit_has_the_same_weights(tmp_path):
    uninterrupted = train(build_model(), tmp_path / "whole.pt")
    interrupted = build_model()
    interrupted.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, tmp_path / "cut.pt")
    resumed = train(build_model(), tmp_path / "cut.pt")
    assert all(torch.equal(uninterrupted[name], value) for name, value in resumed.items())


def test_training_reduces_the_loss(tmp_path):
    net = build_model()
    before = build_loss(net)(99).item()
    train(net, tmp_path / "long.pt", steps=200)
    assert build_loss(net)(99).item() < 0.2 * before


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonalize_keeps_directions_and_evens_singular_values(shape):
    """Newton-Schulz of degree 5 brings all singular values near 1 and leaves the singular vectors."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    stretched = u @ torch.diag(torch.linspace(0.5, 3, min(shape))) @ v
    in_singular_basis = u.T @ orthogonalize(stretched) @ v.T
    assert (in_singular_basis.diagonal() - 1).abs().max() < 0.35
    assert (in_singular_basis - in_singular_basis.diagonal().diag()).abs().max() < 1e-4
