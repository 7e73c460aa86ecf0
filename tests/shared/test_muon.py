"""Muon agrees with PyTorch's, whose products are in bfloat16, and keeps to matrices."""

import pytest
import torch

from shared.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
    assert 0.5 < values.min() and values.max() < 1.3


def test_a_zero_gradient_gives_a_zero_update() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()


def test_steps_equal_those_of_pytorch_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 48), torch.randn(48, 16), torch.randn(16, 48)]
    runs = []
    for make in (
        lambda p: Muon(p, lr=0.02, weight_decay=0.1),
        lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="original"),
    ):
        torch.manual_seed(1)
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        optimizer = make(weights)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        runs.append(weights)
    for ours, theirs, before in zip(*runs, start, strict=True):
        assert (ours - theirs).norm() < 0.02 * (ours - before).norm()


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
