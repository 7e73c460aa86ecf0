import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_optimization.builtin.subject import Data, Recipe, Subject, accuracy, train
from model_optimization.pruning.magnitude_pruning import (
    Scope,
    apply_masks,
    compressed_megabytes,
    gradual,
    masks,
    prunable,
    sparsity_at,
    sparsity_of,
)
from shared.errors import InputError


@given(st.floats(0, 0.99), st.sampled_from(["global", "layer"]), st.integers(0, 100))
def test_exactly_the_smallest_go(sparsity: float, scope: Scope, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(6, 5, generator=generator), 3 * torch.randn(4, 4, generator=generator)]
    kept = masks(weights, sparsity, scope)
    if scope == "global":
        assert sum(int((~keep).sum()) for keep in kept) == round(sparsity * 46)
        gone = torch.cat([weight[~keep].abs() for weight, keep in zip(weights, kept, strict=True)])
        stays = torch.cat([weight[keep].abs() for weight, keep in zip(weights, kept, strict=True)])
        assert not len(gone) or not len(stays) or gone.max() <= stays.min()
    else:
        assert [int((~keep).sum()) for keep in kept] == [round(sparsity * 30), round(sparsity * 16)]


def test_masks_are_those_of_pytorchs_own_pruning() -> None:
    from torch.nn.utils import prune

    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 6), torch.nn.Linear(6, 4)]
    ours = masks([layer.weight for layer in layers], 0.4)
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.4)
    for layer, keep in zip(layers, ours, strict=True):
        torch.testing.assert_close(layer.weight_mask, keep.float())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\)"):
        masks([torch.ones(2, 2)], sparsity)


def test_the_schedule_rises_fast_then_slowly_and_ends_exactly() -> None:
    values = [sparsity_at(step / 10, 0.8) for step in range(13)]
    assert values[0] == 0 and values[10] == values[12] == 0.8
    steps = [after - before for before, after in zip(values, values[1:11], strict=False)]
    assert all(one > two for one, two in zip(steps, steps[1:], strict=False))


def test_gradual_pruning_ends_at_its_sparsity_and_keeps_the_accuracy(subject: Subject, data: Data) -> None:
    model = copy.deepcopy(subject.model)
    after_step = gradual(model, 0.6)
    train(model, subject.encoder, data.splits["train"], Recipe(epochs=6, batch_size=16, learning_rate=2e-3),
          after_step=after_step)  # fmt: skip
    assert sparsity_of(model) == pytest.approx(0.6, abs=0.001)
    pruned = subject.with_model(model, "pruned")
    once = subject.with_model(copy.deepcopy(subject.model), "once")
    weights = list(prunable(once.model).values())
    apply_masks(weights, masks(weights, 0.6))
    assert accuracy(pruned, data) > 0.9
    assert accuracy(pruned, data) >= accuracy(once, data)


def test_zeros_make_the_file_smaller_only_where_it_is_compressed(subject: Subject) -> None:
    sparse = copy.deepcopy(subject.model)
    weights = list(prunable(sparse).values())
    apply_masks(weights, masks(weights, 0.8))
    whole, deflated = compressed_megabytes(subject.model)
    sparse_whole, sparse_deflated = compressed_megabytes(sparse)
    assert sparse_whole == whole and sparse_deflated < 0.75 * deflated


def test_the_layer_that_decides_is_left_alone(subject: Subject) -> None:
    names = prunable(subject.model)
    assert "classifier" not in names and len(names) == 2 * 6 + 1


def test_gradual_pruning_that_goes_on_in_the_middle_is_as_sparse_as_it_was(subject: Subject) -> None:
    model = copy.deepcopy(subject.model)
    gradual(model, 0.6, until=0.75, every=10)(7, 20)  # no step at which masks are due
    assert sparsity_of(model) == pytest.approx(sparsity_at(7 / 15, 0.6), abs=0.001)
