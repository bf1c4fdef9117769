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


def draw_batch(step):
    return {"ids": torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))}


def compute_loss(net, batch):
    return nn.functional.cross_entropy(net(batch["ids"]), batch["ids"] % 3)


def train(net, file, stop_at=None, **overrides):
    def draw(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return draw_batch(step)

    options = {"steps": STEPS, "learning_rate": 0.05, "state_file": file, "save_every": 2} | overrides
    fit(net, draw, lambda batch: compute_loss(net, batch), **options)
    return net.state_dict()


def test_a_resumed_fit_has_the_same_weights(tmp_path):
    uninterrupted = train(build_model(), tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(build_model(), tmp_path / "cut.pt", stop_at=5)
    resumed = train(build_model(), tmp_path / "cut.pt")
    assert all(torch.equal(uninterrupted[name], value) for name, value in resumed.items())


def test_training_reduces_the_loss(tmp_path):
    net = build_model()
    before = compute_loss(net, draw_batch(99)).item()
    train(net, tmp_path / "long.pt", steps=200)
    assert compute_loss(net, draw_batch(99)).item() < 0.2 * before


def test_a_time_limit_ends_training_and_its_schedule(tmp_path):
    net = build_model()
    train(net, tmp_path / "short.pt", steps=10**9, max_seconds=0.3)
    assert torch.load(tmp_path / "short.pt", weights_only=True)["step"] == 10**9
    assert compute_loss(net, draw_batch(99)).item() < 0.5


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonalize_keeps_directions_and_evens_singular_values(shape):
    """Newton-Schulz of degree 5 brings all singular values near 1 and leaves the singular vectors."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    stretched = u @ torch.diag(torch.linspace(0.5, 3, min(shape))) @ v
    in_singular_basis = u.T @ orthogonalize(stretched) @ v.T
    assert (in_singular_basis.diagonal() - 1).abs().max() < 0.35
    assert (in_singular_basis - in_singular_basis.diagonal().diag()).abs().max() < 1e-4
