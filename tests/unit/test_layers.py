"""Layers that run on factors: equal to the dense ones, whatever their geometry."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nnr_codec.factorization.forms import CP, FORMS, FactoredWeight, LowRank  # noqa: E402
from nnr_codec.layers import dense_state, factored_weights, with_dense_layers  # noqa: E402
from nnr_codec.layers.factorized import FactorizedLayer, factored  # noqa: E402

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FORM_DIMENSIONS = {"lr": (1, 2, 3), "cp": (1, 2), "tucker2": (1, 2), "ht2": (2,)}


def random_weight(
    form: str, shape: tuple[int, ...], rng: np.random.Generator, most: int = 5
) -> FactoredWeight:
    """Random factors of random ranks."""
    kind = FORMS[form]
    ranks = [int(rng.integers(1, min(rank, most) + 1)) for rank in kind.max_ranks(shape)]
    factors = [rng.normal(0, 0.5, s).astype(np.float32) for s in kind.factor_shapes(shape, ranks)]
    return kind(shape, tuple(factors))


def assert_equal_layers(layer: nn.Module, weight: FactoredWeight, inputs: Any) -> FactorizedLayer:
    """Compare a layer with the dense weight with the one on factors."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.to_dense()))
        made = factored(layer, weight)
        expected, found = layer(inputs), made(inputs)
    assert found.shape == expected.shape
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(made.weight.detach().numpy(), weight.to_dense(), atol=1e-5)
    assert made.bias is layer.bias if not isinstance(layer, nn.Embedding) else made.bias is None
    return made


@st.composite
def convolutions(draw: st.DrawFn, form: str) -> tuple[nn.Module, Any]:
    """A convolution of any geometry that the form is executed for, and an input for it."""
    dimensions = draw(st.sampled_from(FORM_DIMENSIONS.get(form, (1, 2))))
    groups = draw(st.sampled_from([1, 1, 2, 3])) if form == "lr" else 1
    inputs, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dimensions))

    kernel, dilation, stride = sizes(1, 4), sizes(1, 2), sizes(1, 3)
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "same":
        stride = (1,) * dimensions
    elif padding == "numbers":
        padding = sizes(0, 2)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    assume(not (mode == "reflect" and dimensions == 3 and padding == "valid"))
    layer = CONVOLUTIONS[dimensions](
        inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        bias=draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip
    return layer, torch.randn(2, inputs, *sizes(9, 12))


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolutions(form: str, data: st.DataObject) -> None:
    layer, inputs = data.draw(convolutions(form))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    assert_equal_layers(layer, random_weight(form, tuple(layer.weight.shape), rng), inputs)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_transposed_convolutions(data: st.DataObject) -> None:
    dimensions, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    inputs, outputs = (groups * data.draw(st.integers(1, 4)) for _ in range(2))
    kernel, stride, dilation, padding = (
        tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))
        for low, high in ((1, 4), (1, 3), (1, 2), (0, 1))
    )
    most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    output_padding = tuple(data.draw(st.integers(0, m)) for m in most)
    layer = TRANSPOSED[dimensions](
        inputs, outputs, kernel, stride=stride, padding=padding, output_padding=output_padding,
        groups=groups, bias=data.draw(st.booleans()), dilation=dilation,
    )  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weight = random_weight("lr", tuple(layer.weight.shape), rng)
    assert_equal_layers(layer, weight, torch.randn(2, inputs, *(5,) * dimensions))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_size_that_a_transposed_convolution_is_to_have(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=groups)
    weight = random_weight("lr", tuple(layer.weight.shape), np.random.default_rng(0))
    inputs = torch.randn(1, 4, 5, 6)
    made = assert_equal_layers(layer, weight, inputs)
    for size in ((9, 11), (10, 12), (9, 12)):
        expected = layer(inputs, output_size=size)
        assert tuple(expected.shape[2:]) == size
        torch.testing.assert_close(made(inputs, output_size=size), expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="output size"):
        made(inputs, output_size=(20, 12))


@pytest.mark.parametrize("form", ["lr", "joint_right", "joint_left", "joint_binary"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers(form: str, kind: type[nn.Linear], bias: bool) -> None:
    """Also the kind that attention has for its outputs."""
    layer = kind(7, 9, bias=bias)
    weight = random_weight(form, (9, 7), np.random.default_rng(0))
    assert_equal_layers(layer, weight, torch.randn(4, 3, 7))


def test_embedding() -> None:
    layer = nn.Embedding(20, 6, padding_idx=3)
    weight = random_weight("lr", (20, 6), np.random.default_rng(0))
    made = assert_equal_layers(layer, weight, torch.tensor([[1, 3, 19]]))
    assert made.reduce.padding_idx == 3


@pytest.mark.parametrize(
    ("layer", "form", "reason"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), "cp", "groups"),
        (nn.Conv2d(4, 6, 3, groups=2), "joint_left", "groups"),
        (nn.ConvTranspose2d(4, 6, 3), "tucker2", "ConvTranspose2d"),
        (nn.Embedding(4, 6), "joint_left", "Embedding"),
        (nn.Bilinear(4, 5, 6), "cp", "Bilinear"),
        (nn.Bilinear(4, 5, 6), "lr", "Bilinear"),
        (nn.Embedding(4, 6, max_norm=1.0), "lr", "max_norm"),
    ],
)
def test_what_is_not_executed_is_refused(layer: nn.Module, form: str, reason: str) -> None:
    weight = random_weight(form, tuple(layer.weight.shape), np.random.default_rng(0))
    with pytest.raises(ValueError, match=reason):
        factored(layer, weight)


def test_another_shape_is_refused() -> None:
    weight = random_weight("lr", (6, 4, 3, 3), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(6, 4, 3, 3\).*\(6, 4, 5, 5\)"):
        factored(nn.Conv2d(4, 6, 5), weight)


def joint_net() -> tuple[nn.Module, nn.Module, Any]:
    """Two convolutions that share a factor, one by CP and a linear layer: dense, and factorized."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    dense = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    shared = rng.normal(0, 0.5, (4, 18)).astype(np.float32)
    right = FORMS["joint_right"]
    weights = {
        "0": right((6, 4, 3, 3), (rng.normal(0, 0.5, (12, 4)).astype(np.float32), shared)),
        "2": right((6, 6, 3, 3), (rng.normal(0, 0.5, (18, 4)).astype(np.float32), shared)),
        "3": random_weight("cp", (8, 6, 3, 3), rng),
        "6": random_weight("lr", (5, 8), rng),
    }
    made, parameters = copy.deepcopy(dense), {}
    with torch.no_grad():
        for name, weight in weights.items():
            dense.get_submodule(name).weight.copy_(torch.from_numpy(weight.to_dense()))
            names = [f"{name}.{i}" for i in range(len(weight.factors))]
            names = [
                "shared" if f is shared else n for n, f in zip(names, weight.factors, strict=True)
            ]
            layer = factored(made.get_submodule(name), weight, names, parameters)
            setattr(made, name, layer)
    return dense, made, torch.randn(3, 4, 9, 9)


def test_shared_factors_are_one_parameter() -> None:
    dense, made, inputs = joint_net()
    assert made[0].horizontal.weight is made[2].horizontal.weight
    torch.testing.assert_close(made(inputs), dense(inputs), rtol=1e-4, atol=1e-4)


def test_gradients_flow_to_the_factors() -> None:
    """By the layers and by the dense weight alike."""
    dense, made, inputs = joint_net()
    made(inputs).square().sum().backward()
    dense(inputs).square().sum().backward()
    by_layers = {name: p.grad.clone() for name, p in made.named_parameters()}
    assert all(float(gradient.abs().max()) > 0 for gradient in by_layers.values())
    made.zero_grad()
    for name in "0236":
        layer, twin = made.get_submodule(name), dense.get_submodule(name)
        (layer.weight * twin.weight.grad).sum().backward()
    for name, parameter in made.named_parameters():
        if not name.endswith("bias"):
            torch.testing.assert_close(parameter.grad, by_layers[name], rtol=1e-3, atol=1e-4)


def test_training_changes_what_is_shared_once() -> None:
    _, made, inputs = joint_net()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)
    before = float(made(inputs).square().sum().detach())
    for _ in range(5):
        optimizer.zero_grad()
        loss = made(inputs).square().sum()
        loss.backward()
        optimizer.step()
    assert float(made(inputs).square().sum().detach()) < before
    assert made[0].horizontal.weight is made[2].horizontal.weight


def test_copies_pickles_and_state_dicts() -> None:
    _, made, inputs = joint_net()
    expected = made(inputs)
    clone = copy.deepcopy(made)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (clone, loaded):
        assert torch.equal(other(inputs), expected)
        assert other[0].horizontal.weight is other[2].horizontal.weight
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    clone.load_state_dict(made.state_dict())
    assert torch.equal(clone(inputs), expected)


def test_factors_come_back() -> None:
    dense, made, _ = joint_net()
    found = factored_weights(made)
    assert list(found) == ["0.weight", "2.weight", "3.weight", "6.weight"]
    assert found["0.weight"].factors[1] is found["2.weight"].factors[1]
    state = dense_state(made)
    assert list(state) == list(dense.state_dict())
    for name, tensor in dense.state_dict().items():
        np.testing.assert_allclose(state[name], tensor.numpy(), atol=1e-5)
        if name in found:
            np.testing.assert_allclose(found[name].to_dense(), tensor.numpy(), atol=1e-5)


def test_without_names_nothing_is_shared() -> None:
    shared: dict[Any, Any] = {}
    rng = np.random.default_rng(0)
    weights = [random_weight("lr", (5, 6), rng) for _ in range(2)]
    layers = [factored(nn.Linear(6, 5), weight, shared=shared) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        np.testing.assert_allclose(layer.weight.detach(), weight.to_dense(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_of_other_types_come_back(dtype: Any) -> None:
    """The dense weight is the product of the factors as they are, rounded once, to float32."""
    layer = nn.Linear(40, 30, bias=False).to(dtype)
    made = nn.Sequential(factored(layer, random_weight("lr", (30, 40), np.random.default_rng(0))))
    found = factored_weights(made)["0.weight"]
    kept = np.float32 if dtype is torch.bfloat16 else made[0].reduce.weight.detach().numpy().dtype
    assert {factor.dtype for factor in found.factors} == {np.dtype(kept)}
    expected = (made[0].expand.weight.double() @ made[0].reduce.weight.double()).detach()
    assert np.array_equal(dense_state(made)["0.weight"], found.to_dense())
    np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-6, atol=1e-7)


EXPORTED = [
    *((form, nn.Conv2d(8, 12, 3, stride=2, padding=1)) for form in FORMS),
    *((form, nn.Conv1d(8, 12, 3, padding=2, dilation=2)) for form in FORMS if form != "ht2"),
    ("cp", nn.Conv2d(8, 12, 3, padding="same", padding_mode="circular")),
    ("lr", nn.Conv2d(8, 12, 3, groups=4)),
    ("lr", nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1)),
    ("lr", nn.Linear(8, 12)),
    ("lr", nn.Embedding(8, 12)),
    ("joint_binary", nn.Linear(8, 12)),
]


@pytest.mark.parametrize(("form", "layer"), EXPORTED)
def test_onnx(form: str, layer: nn.Module, tmp_path: Path) -> None:
    """What is exported has the factors, and gives the same outputs."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    weight = random_weight(form, tuple(layer.weight.shape), np.random.default_rng(0))
    made = nn.Sequential(factored(layer, weight)).eval()
    inputs = torch.randn(1, 8, *(9,) * (layer.weight.ndim - 2))
    if isinstance(layer, nn.Embedding):
        inputs = torch.tensor([[1, 7]])
    torch.onnx.export(made, (inputs,), str(tmp_path / "m.onnx"), dynamo=False)
    exported = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(exported)
    elements = sum(int(np.prod(value.dims)) for value in exported.graph.initializer)
    assert elements == sum(parameter.numel() for parameter in made.parameters())
    (name,) = [value.name for value in exported.graph.input]
    (found,) = ReferenceEvaluator(exported).run(None, {name: inputs.numpy()})
    expected = made(inputs)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    graph = torch.export.export(made, (inputs,))  # what torch's newer exporter begins with
    torch.testing.assert_close(graph.module()(inputs), expected, rtol=1e-4, atol=1e-4)


def test_dtype_and_requires_grad_are_the_layers() -> None:
    layer = nn.Linear(6, 5).to(torch.bfloat16).requires_grad_(False).eval()
    layer.bias.requires_grad_(True)
    made = factored(layer, random_weight("lr", (5, 6), np.random.default_rng(0)))
    assert not made.training
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in made.parameters()] == [False, False, True]


def test_transformer_layers_find_a_dense_weight() -> None:
    """Their fast paths take the weights of layers that they do not call."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    other = copy.deepcopy(block)
    rng = np.random.default_rng(0)
    for path in ("linear1", "linear2", "self_attn.out_proj"):
        layer = block.get_submodule(path)
        weight = random_weight("lr", tuple(layer.weight.shape), rng)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.to_dense()))
        parent, _, child = path.rpartition(".")
        setattr(other.get_submodule(parent), child, factored(layer, weight))
    inputs = torch.randn(2, 5, 8)
    torch.testing.assert_close(other(inputs), block(inputs), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), block(inputs), rtol=1e-4, atol=1e-4)


def test_fewer_operations() -> None:
    flops = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode
    layer = nn.Conv2d(32, 32, 3, padding=1)
    rng = np.random.default_rng(0)
    low = LowRank((32, 32, 3, 3), tuple(map(rng.standard_normal, ((32, 4), (4, 288)))))
    cp = CP((32, 32, 3, 3), tuple(map(rng.standard_normal, ((32, 8), (32, 8), (3, 8), (3, 8)))))
    for weight in (low, cp):
        with flops(display=False) as counter:
            factored(layer, weight)(torch.zeros(1, 32, 10, 10))
        assert counter.get_total_flops() == 2 * weight.macs((10, 10), (10, 10))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(16, 24, 3, padding=1, stride=2), (1, 16, 12, 13)),
        (nn.Conv1d(16, 24, 3, padding=1), (1, 16, 12)),
        (nn.Linear(16, 24), (1, 16)),
    ],
)
def test_operations_and_parameters_are_those_of_the_form(
    form: str, layer: nn.Module, inputs: tuple[int, ...]
) -> None:
    from nnr_codec.experiments.measures.complexity import measure_complexity

    shape = tuple(layer.weight.shape)
    try:
        FORMS[form].max_ranks(shape)
    except ValueError:
        pytest.skip("the form has no such shape")
    weight = random_weight(form, shape, np.random.default_rng(0))
    made = factored(layer, weight)
    found = measure_complexity(made, torch.zeros(inputs))
    output = made(torch.zeros(inputs))
    assert found.macs == weight.macs(inputs[2:], tuple(output.shape[2:]))
    assert found.parameters == weight.parameter_count + 24
    assert found.unknown == found.idle == ()


def test_operations_of_groups() -> None:
    """The tiled weight counts for each group, and as a parameter once."""
    from nnr_codec.experiments.measures.complexity import measure_complexity

    factors = tuple(np.ones(size, np.float32) for size in ((24, 3), (3, 36)))
    made = factored(nn.Conv2d(16, 24, 3, groups=4), LowRank((24, 4, 3, 3), factors))
    found = measure_complexity(made, torch.zeros(1, 16, 8, 8))
    assert found.macs == 6 * 6 * (4 * 3 * 36 + 24 * 3)
    assert found.parameters == 24 * 3 + 3 * 36 + 24


LAYERS: dict[str, nn.Module] = {
    "lr": nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
    "cp": nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False),
    "tucker2": nn.Conv1d(8, 12, 3, padding=1),
    "ht2": nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize(("form", "layer"), LAYERS.items())
def test_components_that_are_zero_can_go(form: str, layer: nn.Module) -> None:
    rng = np.random.default_rng(3)
    shape = tuple(layer.weight.shape)
    ranks = [min(rank, 5 - index) for index, rank in enumerate(FORMS[form].max_ranks(shape))]
    sizes = FORMS[form].factor_shapes(shape, ranks)
    factors = [rng.normal(0, 0.5, size).astype(np.float32) for size in sizes]
    kept = [sorted(rng.permutation(rank)[: rank - 2].tolist()) for rank in ranks]
    for places, rank, stay in zip(FORMS[form].rank_places(len(factors)), ranks, kept, strict=True):
        gone = [index for index in range(rank) if index not in stay]
        factor, axis = places[-1]  # zeros in one of them are enough
        np.moveaxis(factors[factor], axis, 0)[gone] = 0
    made = factored(layer, FORMS[form](shape, tuple(factors)))
    assert made.ranks == tuple(ranks)
    made.requires_grad_(False).eval()
    inputs = torch.randn(2, 8, *(9,) * (layer.weight.ndim - 2))
    expected, bias = made(inputs), made.bias
    made.keep(kept)
    assert made.ranks == tuple(map(len, kept))
    torch.testing.assert_close(made(inputs), expected, rtol=0, atol=1e-5)
    elements = sum(parameter.numel() for parameter, _ in made.factor_parameters())
    assert elements == FORMS[form].parameters(shape, made.ranks)
    assert made.bias is bias
    assert not any(p.requires_grad for p in made.parameters())
    assert not any(part.training for part in made.modules())


def test_components_have_to_be_those_of_the_form() -> None:
    rng = np.random.default_rng(0)
    made = factored(nn.Linear(6, 5), random_weight("lr", (5, 6), rng))
    for components in ([], [[]], [[0], [0]]):
        with pytest.raises(ValueError, match="components of 1 ranks"):
            made.keep(components)
    joint = factored(nn.Linear(6, 5), random_weight("joint_right", (5, 6), rng))
    with pytest.raises(ValueError, match="other layers"):
        joint.keep([[0]])


@pytest.mark.parametrize(("form", "layer"), EXPORTED)
def test_dense_layers_again(form: str, layer: nn.Module) -> None:
    weight = random_weight(form, tuple(layer.weight.shape), np.random.default_rng(0))
    made = factored(layer, weight)
    module = nn.ModuleDict({"once": nn.Sequential(made), "again": made}).eval()
    inputs = torch.randn(1, 8, *(9,) * (layer.weight.ndim - 2))
    if isinstance(layer, nn.Embedding):
        inputs = torch.tensor([[1, 7]])
    expected = made(inputs)
    copied = with_dense_layers(copy.deepcopy(module))
    assert with_dense_layers(module) is module
    for dense in (module["again"], copied["again"]):
        assert repr(dense) == repr(layer)
        torch.testing.assert_close(dense(inputs), expected, rtol=1e-4, atol=1e-4)
        assert not dense.training
    assert module["once"][0] is module["again"]
    assert module["again"].weight is not layer.weight
    if not isinstance(layer, nn.Embedding):
        assert module["again"].bias is layer.bias
