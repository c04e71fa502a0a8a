"""Second moments of layers' inputs: against patches cut by hand, and against layers' outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnr_codec.calibration import calibrate as calibration
from nnr_codec.calibration import unfolding
from nnr_codec.calibration.calibrate import calibrate
from nnr_codec.calibration.gradients import OutputGradients
from nnr_codec.calibration.moments import InputMoments
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.support.block_diagonal import block_diagonal

torch = pytest.importorskip("torch")
nn = torch.nn


def _random(*shape: int, seed: int = 3) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _single(layer: Any, inputs: Any, **options: Any) -> InputMoments:
    """Return the moments of `layer`, which is the whole module."""
    return calibrate(layer, [inputs], **options).moments["weight"]


def test_patches_of_a_convolution_by_hand() -> None:
    """Stride 2, padding 1, dilation 2 and two groups, each patch cut out by itself."""
    layer = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2)
    inputs = _random(3, 4, 9, 8)
    padded = np.pad(inputs.numpy().astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = (9 + 2 - 4 - 1) // 2 + 1, (8 + 2 - 2 - 1) // 2 + 1
    expected = np.zeros((2, 12, 12))
    for sample in padded:
        for y in range(height):
            for x in range(width):
                for group in range(2):
                    patch = [
                        sample[channel, 2 * y + 2 * i, 2 * x + 2 * j]
                        for channel in (2 * group, 2 * group + 1)
                        for i in range(3)
                        for j in range(2)
                    ]
                    expected[group] += np.outer(patch, patch)
    positions = 3 * height * width
    moments = _single(layer, inputs)
    assert moments.positions == positions
    assert moments.blocks.dtype == np.float64
    np.testing.assert_allclose(moments.blocks[:, 0], expected / positions, rtol=1e-12, atol=1e-14)


def test_linear_layers_take_every_vector() -> None:
    layer = nn.Linear(5, 2)
    inputs = _random(4, 3, 5)
    vectors = inputs.numpy().astype(np.float64).reshape(-1, 5)
    moments = _single(layer, inputs)
    assert moments.positions == 12
    np.testing.assert_allclose(moments.blocks[0, 0], vectors.T @ vectors / 12, rtol=1e-13)


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 11)),
    "conv1d, one sample": (lambda: nn.Conv1d(4, 6, 3), (4, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), (1, 2), (1, 0), (2, 1)), (2, 3, 7, 8)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=2), (2, 3, 7, 8)),
    "conv2d valid": (lambda: nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 7, 8)),
    "conv2d circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
        (2, 3, 7, 8),
    ),
    "conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 7, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1)), (2, 2, 4, 5, 3)),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(4, 6, 4, 3, 2, output_padding=1, dilation=2),
        (2, 4, 5),
    ),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2),
        (3, 4, 5, 4),
    ),
    "transposed, cut": (lambda: nn.ConvTranspose2d(2, 3, 2, padding=2), (2, 2, 6, 6)),
}


def _output_error(moments: InputMoments, change: np.ndarray) -> float:
    """Return the squared error of the output at a position, in the mean, by the moments."""
    layout, values = moments.layout, change.astype(np.float64)
    if layout.transposed:
        apart = values.reshape(layout.groups, layout.channels, -1, layout.taps)
        values = apart.swapaxes(1, 2)
    rows = values.reshape(layout.groups, -1, layout.width)
    return float(np.sum((rows @ block_diagonal(moments.blocks)) * rows))


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_give_the_error_of_the_output(kind: str) -> None:
    """The definition: what a change of the weight does to the output, to rounding."""
    build, shape = LAYERS[kind]
    torch.manual_seed(1)
    layer = build().double()
    inputs = _random(*shape).double()
    moments = _single(layer, inputs)
    with torch.no_grad():
        before = layer(inputs)
        change = _random(*layer.weight.shape, seed=4).double()
        layer.weight += change
        error = (layer(inputs) - before).square().sum().item()
    channels = before.shape[-1 if kind == "linear" else -len(layer.weight.shape[2:]) - 1]
    assert moments.positions == before.numel() // channels
    assert _output_error(moments, change.numpy()) * moments.positions == pytest.approx(error)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    inputs = _random(5, 3, 9, 9)
    whole = _single(layer, inputs)
    for piece_bytes in (1, 3000, 20000):  # a row, some rows, some samples
        monkeypatch.setattr(calibration, "_PIECE_BYTES", piece_bytes)
        parts = _single(layer, inputs)
        assert parts.positions == whole.positions
        np.testing.assert_allclose(parts.blocks, whole.blocks, rtol=1e-12, atol=1e-14)


def test_windows_are_views() -> None:
    layer = nn.Conv2d(3, 4, 3)
    inputs = _random(2, 3, 9, 9)
    found = unfolding.windows(layer, inputs, layer(inputs))
    assert found.shape == (2, 3, 3, 3, 7, 7)
    assert found.untyped_storage().nbytes() == inputs.untyped_storage().nbytes()


class _Network(nn.Module):
    """A layer that runs twice, tied ones, one that never runs, and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.idle = nn.Linear(4, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, inputs: Any) -> Any:
        inner = self.twice(self.twice(inputs))
        return self.last(self.tied(self.norm(inner)))


def _network() -> tuple[Any, Any]:
    torch.manual_seed(2)
    return _Network(), _random(6, 4)


def test_calls_and_ties_add_up() -> None:
    network, inputs = _network()
    found = calibrate(network, [(inputs, None)])
    assert list(found.moments) == ["twice.weight", "last.weight"]
    assert found.unused == ("idle.weight",)
    assert found.samples == 6
    network.eval()
    with torch.no_grad():
        second = network.twice(inputs)
        third = network.norm(network.twice(second))
    vectors = torch.cat([inputs, second, third]).double().numpy()
    moments = found.moments["twice.weight"]
    assert moments.positions == 18
    np.testing.assert_allclose(moments.blocks[0, 0], vectors.T @ vectors / 18, rtol=1e-12)


def test_batches_are_averaged_and_order_is_reproducible() -> None:
    network, inputs = _network()
    whole = calibrate(network, [inputs])
    halves = calibrate(network, [(inputs[:2], None), [inputs[2:], None]])
    again = calibrate(network, [(inputs[:2], None), [inputs[2:], None]])
    assert halves.samples == 6
    for name, moments in whole.moments.items():
        np.testing.assert_allclose(moments.blocks, halves.moments[name].blocks, rtol=1e-5)
        assert np.array_equal(again.moments[name].blocks, halves.moments[name].blocks)


def test_module_is_left_as_it_was() -> None:
    network, inputs = _network()
    network.train()
    network.norm.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    calibrate(network, [inputs])
    with pytest.raises(InvalidModel):
        calibrate(network, [inputs * float("nan")])
    assert network.training
    assert network.tied.training
    assert not network.norm.training
    assert not any(part._forward_hooks for part in network.modules())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_inputs_by_position_and_by_keyword() -> None:
    layer = nn.Bilinear(2, 2, 3)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.mix = layer

        def forward(self, first: Any, second: Any) -> Any:
            return self.layer(input=self.mix(first, second))

    first, second = _random(5, 2), _random(5, 2, seed=9)
    module = Pair()
    by_position = calibrate(module, [((first, second), None)])
    by_keyword = calibrate(module, [{"first": first, "second": second}])
    assert by_position.samples == by_keyword.samples == 5
    assert list(by_position.moments) == ["layer.weight"]
    assert np.array_equal(
        by_position.moments["layer.weight"].blocks, by_keyword.moments["layer.weight"].blocks
    )


def test_only_what_is_wanted() -> None:
    network, inputs = _network()
    assert list(calibrate(network, [inputs], only={"last.weight"}).moments) == ["last.weight"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_names_the_layer(value: float) -> None:
    network, inputs = _network()
    network.norm.bias.data[1] = value
    with pytest.raises(InvalidModel, match=r"'twice\.weight': the input of its layer is not fin"):
        calibrate(network, [inputs])


def test_ties_that_read_differently_are_refused() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv1d(4, 6, 2, stride=2)
            self.up = nn.ConvTranspose1d(6, 4, 2, stride=2)
            self.up.weight = self.down.weight

    with pytest.raises(InvalidModel, match=r"'down\.weight': is tied"):
        calibrate(Autoencoder(), [_random(1, 4, 8)])


def test_no_samples() -> None:
    with pytest.raises(InvalidOptions, match="no samples"):
        calibrate(nn.Linear(2, 2), [])


def test_reduced_moments_are_the_blocks_of_the_full_ones() -> None:
    layer = nn.Conv2d(4, 2, 3)
    inputs = _random(2, 4, 6, 6)
    full = _single(layer, inputs)
    assert full.blocks.shape == (1, 1, 36, 36)
    for size in (18, 9, 3, 1):
        found = calibrate(layer, [inputs], max_bytes=36 * size * 8)
        assert found.reduced == ("weight",)
        blocks = found.moments["weight"].blocks
        assert blocks.shape == (1, 36 // size, size, size)
        for index in range(36 // size):
            part = slice(index * size, (index + 1) * size)
            np.testing.assert_allclose(blocks[0, index], full.blocks[0, 0, part, part], rtol=1e-12)
    change = np.ones((2, 4, 3, 3))
    diagonal = _output_error(found.moments["weight"], change)
    assert diagonal == pytest.approx(2 * np.trace(full.blocks[0, 0]))


def test_gradients_leave_those_of_the_module() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.grad = kept = torch.ones(3, 4)
    gradients = OutputGradients(layer)
    gradients.add(_random(8, 4))
    assert gradients.moments()["weight"].rows.any()
    assert layer.weight.grad is kept
    assert layer.bias.grad is None
    assert (kept == 1).all()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_gradients_of_one_value_for_each_sample(shape: tuple[int, ...]) -> None:
    """Its integer targets are no classes."""
    layer = nn.Linear(4, 1)
    module = nn.Sequential(layer, nn.Flatten(0)) if not shape else nn.Sequential(layer)
    gradients = OutputGradients(module)
    gradients.add((_random(8, 4), torch.zeros(8, dtype=torch.long)))
    assert gradients.moments()["0.weight"].rows.item() > 0
    assert gradients.kinds == {"values"}


def test_gradients_of_pixels_have_their_classes_in_the_second_dimension() -> None:
    layer = nn.Conv2d(2, 3, 1)
    images = _random(4, 2, 5, 6)
    found = []
    for module in (layer, nn.Sequential(layer, _ChannelsLast())):
        targets = torch.zeros(4, 5, 6, dtype=torch.long)
        gradients = OutputGradients(module)
        gradients.add((images, targets))
        found.append(next(iter(gradients.moments().values())).rows)
    np.testing.assert_allclose(*found, rtol=1e-6)


class _ChannelsLast(nn.Module):
    def forward(self, images: Any) -> Any:
        return images.movedim(1, -1)
