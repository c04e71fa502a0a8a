"""Parameters and MACs against counts by hand."""

from __future__ import annotations

import pytest
from subject_support import subject, torch

from nnr_codec.experiments.measures.complexity import (
    Complexity,
    measure_complexity,
    subject_complexity,
)

nn = torch.nn


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(5, 7), (1, 5), 5 * 7),
        (nn.Linear(5, 7), (2, 3, 5), 6 * 5 * 7),
        (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 8, 8), 8 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2), (1, 4, 9, 9), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, (1, 5), groups=2), (1, 4, 8, 8), 8 * 4 * 6 * 2 * 5),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 8, 8), 8 * 8 * 4 * 9),
        (nn.Conv2d(1, 1, 3, dilation=2), (1, 1, 8, 8), 4 * 4 * 9),
        (nn.Conv1d(3, 2, 4), (1, 3, 10), 7 * 2 * 3 * 4),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 8, 8), 8 * 8 * 4 * 3 * 4),
        (nn.BatchNorm2d(4), (1, 4, 8, 8), 0),
        (nn.ReLU(), (1, 4, 8, 8), 0),
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    assert measure_complexity(layer, torch.zeros(shape)) == Complexity(parameters, macs)


def test_a_layer_that_runs_twice_counts_twice_and_its_parameters_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert measure_complexity(nn.Sequential(layer, layer), torch.zeros(1, 4)) == Complexity(16, 32)


def test_batch_norm_has_parameters_and_statistics_are_none() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    assert measure_complexity(network, torch.zeros(1, 1, 3, 3)).parameters == 4 + 4


def test_the_module_stays_as_it_was() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    before = network[0].running_mean.clone()
    measure_complexity(network, torch.ones(2, 3))
    assert network.training
    assert torch.equal(network[0].running_mean, before)
    assert not network[0]._forward_hooks


def test_what_cannot_be_counted_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3, 3))
            self.attention = nn.MultiheadAttention(3, 1)
            self.unused = nn.Linear(3, 3)
            self.last = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            inputs = inputs @ self.factor
            return self.last(input=self.attention(inputs, inputs, inputs)[0])

    found = measure_complexity(Own(), torch.zeros(1, 3))
    assert found.unknown == ("", "attention")
    assert found.idle == ("attention.out_proj", "unused")
    assert found.macs == 3 * 2


def test_layers_inside_of_transformers_count() -> None:
    """Where torch could run the whole layer as one, without telling the layers inside."""
    found = measure_complexity(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 5, 8)
    )
    assert found.macs == 2 * 5 * 8 * 16
    assert found.unknown == ("self_attn",)


def test_of_a_subject_one_sample_counts() -> None:
    assert subject_complexity(subject()) == Complexity(15, 12)
