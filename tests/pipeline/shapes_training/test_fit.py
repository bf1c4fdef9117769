"""The training loop of the embedded models: continued is the same as undisturbed, and it learns."""

import pytest
import torch
from torch import nn

from pipeline.shapes_training.fit import fit
from pipeline.shapes_training.muon import orthogonalize

STEPS = 8


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3))


def loss_of(net):
    def loss(step):
        if step == getattr(net, "stop_at", None):
            raise KeyboardInterrupt
        ids = torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
        return nn.functional.cross_entropy(net(ids), ids % 3)

    return loss


def run(net, file, **more):
    fit(net, loss_of(net), **{"steps": STEPS, "learning_rate": 0.05, "state_file": file, "save_every": 2} | more)
    return net.state_dict()


def test_an_interrupted_fit_ends_on_the_same_weights(tmp_path):
    whole = run(model(), tmp_path / "whole.pt")
    cut = model()
    cut.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "cut.pt")
    again = run(model(), tmp_path / "cut.pt")
    assert all(torch.equal(whole[name], value) for name, value in again.items())


def test_fit_learns(tmp_path):
    net = model()
    before = loss_of(net)(99).item()
    run(net, tmp_path / "long.pt", steps=200)
    assert loss_of(net)(99).item() < 0.2 * before


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonalized_keeps_the_directions_and_evens_their_lengths(shape):
    """Newton-Schulz of degree 5 brings all singular values near 1 and leaves the singular vectors."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    stretched = u @ torch.diag(torch.linspace(0.5, 3, min(shape))) @ v
    turned = u.T @ orthogonalize(stretched) @ v.T
    assert (turned.diagonal() - 1).abs().max() < 0.35
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-4
