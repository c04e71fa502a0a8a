"""The reference decodes our bitstreams to exactly the tensors that we decode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from building import block_names, floats, head, random_levels, role_shape, unit
from comparison import check_series, check_stream, without_map
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Peer, PeerFailure
from random_models import Arrays, encode_options, int_tensors, models, sparse
from safetensors.numpy import load_file

from nnr_codec import EncodeOptions, decode, encode
from nnr_codec.bitstream import (
    Codebook,
    Context,
    DataUnit,
    EntryPoint,
    ModelParameterSet,
    NodeId,
    ParameterTypes,
    PayloadType,
    parse_units,
    write_data_unit,
)
from nnr_codec.decoding.unit_decoder import decode_data_unit

pytestmark = pytest.mark.interop

CONTEXTS = [Context(profile, ModelParameterSet()) for profile in (0, 1)]
SIGNALLING = Context(1, ModelParameterSet(mps_parent_signalling_enabled_flag=1))
REAL_MODELS = [
    "resnet8_mlperftiny_cifar10",
    "mobilenetv1_025_vww96",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "squeezenet1_0_imagenet_deepcomp",
    "vdsr_set5",
]
seeds = st.integers(0, 2**32)


@settings(settings.get_profile("interop"), max_examples=1500)
@given(model=models(), options=encode_options())
def test_random_models(peer: Peer, model: Arrays, options: EncodeOptions) -> None:
    """Without the map, since what is coded exactly is integers to the reference."""
    check_stream(peer, without_map(encode(model, options=options).data))


@settings(settings.get_profile("interop"), max_examples=400)
@given(model=models(), seed=seeds)
def test_lossless_tensors(peer: Peer, model: Arrays, seed: int) -> None:
    """RAW_FLOAT units, and what the model map makes exact tensors of, without the map: INT units;
    alone and between quantized ones."""
    rng = np.random.default_rng(seed)
    # The names are any text, globs included: name the tensors anew.
    named = {f"{'q' if rng.random() < 0.3 else 'raw'}{i}": v for i, v in enumerate(model.values())}
    data = encode(named, options=EncodeOptions(exclude=("raw*",))).data
    check_stream(peer, without_map(data), same_dtype=False)


def test_raw_floats(peer: Peer) -> None:
    """Values whose bits are as good as random, so that nothing is smaller."""
    rng = np.random.default_rng(0)
    values = np.ldexp(rng.uniform(-1, 1, (40, 30)), rng.integers(-120, 120, (40, 30)))
    result = encode({"w": values.astype(np.float32)}, options=EncodeOptions(lossless=True))
    assert [tensor.kind for tensor in result.report.tensors] == ["raw"]
    check_stream(peer, result.data)


@pytest.mark.parametrize("profile", [0, 1])
def test_exact_representations(peer: Peer, profile: Literal[0, 1]) -> None:
    """Steps, codebooks, grids, tables, bit patterns and halves, without the map."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-7, 8, (60, 50))
    table = rng.normal(0, 1, 16).astype(np.float32)
    model = {
        "step": (steps * 0.375).astype(np.float32),
        "sparse": ((steps**3) * 2.0**-12).astype(np.float32),
        "grid": (steps * np.float32(0.0123)).astype(np.float32),
        "table": table[np.minimum(rng.geometric(0.2, (60, 50)), 15)],
        "bits": rng.normal(0, 0.05, (60, 50)).astype(np.float32),
        "halves": rng.normal(0, 0.05, (60, 50)),
        "wide": rng.integers(-(2**40), 2**40, (9, 5)),
    }
    options = EncodeOptions(lossless=True, profile=profile)
    data = encode(model, options=options).data
    found = check_stream(peer, without_map(data))
    assert [name for name in found if "." in name] == ["table.table", "halves.low", "wide.low"]
    assert found["step"].tobytes() == model["step"].tobytes()


@settings(settings.get_profile("interop"), max_examples=400)
@given(tensor=int_tensors(("int8", "int16", "int64")))
def test_integer_types(peer: Peer, tensor: np.ndarray) -> None:
    """The reference ignores nnr_decompressed_data_format: it gives the same values as int32."""
    check_stream(peer, encode({"i": tensor}).data, same_dtype=False)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("raw", [False, True])
def test_float_types(peer: Peer, dtype: str, raw: bool) -> None:
    """The reference ignores nnr_decompressed_data_format: it gives float32."""
    values = np.random.default_rng(1).normal(0, 0.1, (9, 14)).astype(np.float16).astype(dtype)
    if raw and dtype == "float16":
        values = np.rint(32 * values) / np.float16(32) + np.float16(
            0
        )  # on a step: narrow floats are never raw
    elif raw:
        random_bits = np.random.default_rng(1).bytes(4 * values.size)
        random = np.frombuffer(random_bits, np.float32).reshape(values.shape)
        values = np.where(np.isfinite(random), random, 0).astype(dtype)
    result = encode({"w": values}, options=EncodeOptions(exclude=("*",) if raw else ()))
    kinds = {"float16": "step", "float64": "raw"} if raw else {dtype: "dq"}
    assert result.report.tensors[0].kind == kinds[dtype]
    check_stream(peer, result.data, same_dtype=False)


def _codebook(rng: np.random.Generator, dq_flag: int) -> Codebook:
    # The doubled integers must stay inside.
    size = 33 if dq_flag else int(rng.choice([1, 2, 3, 9, 33]))
    values = np.sort(rng.choice(np.arange(-200, 200), size, replace=False)).tolist()
    offset = size // 2 if dq_flag else int(rng.integers(size))
    return Codebook(int(rng.integers(0, 6)), offset, values)


def _codebook_levels(
    rng: np.random.Generator, shape: tuple[int, ...], book: Codebook, dq_flag: int
) -> np.ndarray:
    levels = random_levels(rng, shape, 2.0, book)
    # An integer k becomes 2k or 2k - 1 before it is looked up.
    return levels // 2 if dq_flag else levels


@settings(settings.get_profile("interop"), max_examples=1000)
@given(seed=seeds, context=st.sampled_from(CONTEXTS), dq_flag=st.integers(0, 1))
def test_codebooks(peer: Peer, seed: int, context: Context, dq_flag: int) -> None:
    """Of any size and zero offset; dependent quantization included, doubled before the look-up."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 30, rng.integers(1, 4)))
    matrix = min(shape[0], int(np.prod(shape[1:]))) > 1
    scan_order = int(rng.integers(0, 5)) if matrix else 0
    book = _codebook(rng, dq_flag)
    record = floats("w", shape, codebooks=[book], dq_flag=dq_flag, scan_order=scan_order)
    record.cabac_unary_length_minus1 = int(rng.integers(0, 12))
    levels = _codebook_levels(rng, shape, book, dq_flag)
    skipping = matrix and context.profile == 1 and bool(rng.integers(2))
    data = unit(record, {"weight": levels}, context, qp=-10, row_skipping=skipping)
    ours = check_stream(peer, head(context) + data)
    if not dq_flag:
        wanted = np.array(book.values)[levels + book.zero_offset]
        assert np.array_equal(np.sign(ours["w"].reshape(-1)), np.sign(wanted))


def test_single_valued_codebook_in_block_rows(peer: Peer) -> None:
    """A constant matrix: nothing is coded, and the entry points are there nevertheless."""
    options = EncodeOptions(qp=-10, profile=1, dq=False, codebook=True, scan_order=1)
    check_stream(peer, encode({"w": np.full((40, 30), 0.5, np.float32)}, options=options).data)


def test_single_valued_codebook_with_entry_points(peer: Peer) -> None:
    """The same by hand: qp_delta -10 in 8 bits, range set to 256, the terminating bin."""
    record = floats("w", (17, 12), codebooks=[Codebook(1, 0, [5])], scan_order=1)
    record.entry_points = [EntryPoint(255, 0, 0), EntryPoint(255, 0, 0)]
    context = CONTEXTS[1]
    stream = head(context) + write_data_unit(record, bytes.fromhex("f58980"), context)
    assert np.all(check_stream(peer, stream)["w"] == np.float32(5 * 0.1875))


def _random_block(rng: np.random.Generator, types: int, dq_flag: int, codebook: bool) -> DataUnit:
    shape = [int(n) for n in rng.integers(2, 14, rng.integers(2, 5))]
    record = DataUnit(
        PayloadType.BLOCK,
        block_names(types),
        tensor_dimensions=shape,
        compressed_parameter_types=types,
        dq_flag=dq_flag,
        cabac_unary_length_minus1=int(rng.integers(0, 14)),
        scan_order=int(rng.integers(0, 3)),
    )
    if types & ParameterTypes.DC:
        record.decomposition_rank = int(rng.integers(2, 7))
        record.g_number_of_rows = shape[0]
    if codebook:
        books = 2 if types & ParameterTypes.DC else 1
        record.codebooks = [_codebook(rng, dq_flag) for _ in range(books)]
    return record


def _block_levels(rng: np.random.Generator, record: DataUnit) -> dict[str, np.ndarray]:
    """Integers for each role, with an all zero row in the weight now and then."""
    levels = {}
    for role in record.coding_roles():
        shape = role_shape(record, role)
        if record.codebooks and role in ("weight", "G", "H"):
            book = record.codebooks[1 if role == "H" else 0]
            levels[role] = _codebook_levels(rng, shape, book, record.dq_flag)
        else:
            levels[role] = random_levels(rng, shape, 3.0)
    return levels


BLOCKS = range(1, 16)


@pytest.mark.parametrize("types", [types for types in BLOCKS if not types & ParameterTypes.DC])
@settings(settings.get_profile("interop"), max_examples=100)
@given(seed=seeds, context=st.sampled_from(CONTEXTS), dq=st.integers(0, 1), codebook=st.booleans())
def test_blocks(
    peer: Peer, types: int, seed: int, context: Context, dq: int, codebook: bool
) -> None:
    """Local scaling, batch norm and bias in all combinations."""
    rng = np.random.default_rng(seed)
    record = _random_block(rng, types, dq, codebook)
    levels = _block_levels(rng, record)
    skipping = context.profile == 1 and bool(rng.integers(2))
    data = unit(record, levels, context, qp=-16, row_skipping=skipping)
    assert len(check_stream(peer, head(context) + data)) == len(levels)


@pytest.mark.parametrize("types", [types for types in BLOCKS if types & ParameterTypes.DC])
@settings(settings.get_profile("interop"), max_examples=100)
@given(seed=seeds, dq=st.integers(0, 1), codebook=st.booleans(), skipping=st.booleans())
def test_decomposed_blocks(
    peer: Peer, types: int, seed: int, dq: int, codebook: bool, skipping: bool
) -> None:
    """The integers of all its tensors: the reference decodes the factors, not their product.

    With codebooks it fails as soon as the block holds more than the factors.
    """
    rng = np.random.default_rng(seed)
    codebook = codebook and types == ParameterTypes.DC
    record = replace(_random_block(rng, types, dq, codebook), node_id=NodeId(0, 0, 1))
    levels = _block_levels(rng, record)
    data = head(SIGNALLING) + unit(record, levels, SIGNALLING, qp=-16, row_skipping=skipping)
    (parsed,) = [p for p in parse_units(data) if isinstance(p.record, DataUnit)]
    ours = {t.name: t.integers for t in decode_data_unit(parsed) if t.integers is not None}
    theirs = peer.integers(data)
    assert sorted(ours) == sorted(theirs) == sorted(record.names)
    for name, integers in ours.items():
        assert np.array_equal(integers, theirs[name].reshape(-1)), name


@pytest.mark.parametrize("profile", [0, 1])
@pytest.mark.parametrize("scan_order", [0, 1, 4])
def test_long_units(peer: Peer, profile: int, scan_order: int) -> None:
    """Units with a 31-bit size."""
    weights = np.random.default_rng(7).normal(0, 0.3, (300, 211)).astype(np.float32)
    options = EncodeOptions(qp=-40, profile=profile, scan_order=scan_order)
    data = encode({"w": weights}, options=options).data
    assert len(data) > 2 * 32768
    check_stream(peer, data)


def with_node_ids(stream: bytes) -> bytes:
    """A stream of profile 1 with node ids of depth 1, which the reference needs for a series."""
    units = []
    number = 0
    for parsed in parse_units(stream):
        data = bytes(parsed.unit.data)
        if isinstance(parsed.record, DataUnit):
            record = replace(parsed.record, node_id=NodeId(0, number, 1))
            data = write_data_unit(record, parsed.payload, parsed.context)
            number += 1
        units.append(data)
    return b"".join(units)


def _difference(rng: np.random.Generator, model: Arrays) -> Arrays:
    """An update: sparse, and mostly where the model is not zero."""
    changes = {name: sparse(rng, v.shape) * (rng.random() + v) for name, v in model.items()}
    return {name: (0.3 * values).astype(np.float32) for name, values in changes.items()}


@settings(settings.get_profile("interop"), max_examples=400)
@given(seed=seeds, options=encode_options(), temporal=st.booleans(), history=st.booleans())
def test_series(
    peer: Peer, seed: int, options: EncodeOptions, temporal: bool, history: bool
) -> None:
    """A model and three updates, with the contexts that the encoder finds smaller."""
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(2, 40)), int(rng.integers(2, 30))), (int(rng.integers(1, 40)),)]
    model = {f"t{i}": (0.3 * sparse(rng, s)).astype("f4") for i, s in enumerate(shapes)}
    contexts = {"temporal_contexts": temporal, "history_contexts": history}
    codebook = options.codebook and not history  # see test_single_valued_codebook_with_history
    options = replace(options, profile=1, codebook=codebook, **contexts)
    streams = [with_node_ids(encode(model, options=options).data)]
    for _ in range(3):
        update = _difference(rng, model)
        streams.append(encode(update, options=options, parents=streams).data)
    check_series(peer, streams)


def test_single_valued_codebook_with_history(peer: Peer) -> None:
    """A constant update: nothing is coded, the flag of history contexts neither."""
    model = {"w": np.full((12, 10), 0.5, np.float32)}
    options = EncodeOptions(qp=-10, profile=1, dq=False, codebook=True)
    base = with_node_ids(encode(model, options=options).data)
    check_series(peer, [base, encode(model, options=options, parents=[base]).data])


def test_series_with_gaps(peer: Peer) -> None:
    """A tensor that an update leaves out: its put_node_depth does not count that stream."""
    rng = np.random.default_rng(5)
    model = {name: (0.3 * sparse(rng, (20, 30))).astype("f4") for name in "ab"}
    options = EncodeOptions(qp=-12, profile=1)
    streams = [with_node_ids(encode(model, options=options).data)]
    for names in ("a", "ab"):
        update = {name: model[name] for name in names}
        streams.append(encode(update, options=options, parents=streams).data)
    check_series(peer, streams)


def test_series_with_raw_floats(peer: Peer) -> None:
    """Neither does the put_node_depth count streams with a tensor's values instead of integers."""
    rng = np.random.default_rng(5)
    model = {name: (0.3 * sparse(rng, (20, 30))).astype("f4") for name in "ab"}
    noise = np.ldexp(rng.uniform(-1, 1, (20, 30)), rng.integers(-120, 120, (20, 30))).astype("f4")
    options = EncodeOptions(qp=-12, profile=1)
    streams: list[bytes] = []
    for values in (noise, model["a"], model["a"], noise, model["a"]):
        is_raw = values is noise
        result = encode(
            {**model, "a": values},
            options=replace(options, exclude=("a",) if is_raw else ()),
            parents=streams,
        )
        assert result.report.tensors[0].kind == ("raw" if is_raw else "dq")
        streams.append(result.data if streams else with_node_ids(result.data))
    check_series(peer, streams)


def test_series_uses_its_parents(peer: Peer) -> None:
    """An update that repeats its parent is smaller for it, or the test above shows nothing."""
    rng = np.random.default_rng(3)
    model = {"w": (0.3 * sparse(rng, (40, 30))).astype("f4")}
    options = EncodeOptions(qp=-12, profile=1)
    base = with_node_ids(encode(model, options=options).data)
    update = encode(model, options=options, parents=[base]).data
    assert len(update) < len(base)
    check_series(peer, [base, update])
    with_parent = [p.record.parent for p in parse_units(update) if isinstance(p.record, DataUnit)]
    assert with_parent[0] is not None


@settings(settings.get_profile("interop"), max_examples=400)
@given(seed=seeds, options=encode_options())
def test_grouped_layers(peer: Peer, seed: int, options: EncodeOptions) -> None:
    """Convolutions and layer norms with what belongs to them, in blocks of our own encoder."""
    rng = np.random.default_rng(seed)
    model: Arrays = {}
    for i in range(8):
        shape = [int(n) for n in rng.integers(1, 12, rng.integers(1, 5))]
        vectors = [f"l{i}.bias"] if rng.random() < 0.7 else []
        if len(shape) > 1 and rng.random() < 0.7:
            vectors += [f"b{i}.{part}" for part in ("weight", "bias", "running_mean")]
            vectors.append(f"b{i}.running_var")
        model[f"l{i}.weight"] = (0.3 * sparse(rng, shape)).astype("f4")
        model |= {name: (0.3 * sparse(rng, shape[:1])).astype("f4") for name in vectors}
    if rng.random() < 0.5:
        model = {name: model[name] for name in sorted(model)}
    options = replace(options, profile=0, row_skipping=False)
    data = encode(model, options=options).data
    if not options.codebook:  # vectors of a block have none, which costs a byte now and then
        assert len(data) <= len(encode(model, options=replace(options, group=False)).data)
    check_stream(peer, without_map(data))
    assert list(decode(data)) == list(model)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models_in_a_target_size(peer: Peer, models_folder: Path, name: str) -> None:
    model = load_file(models_folder / f"{name}.safetensors")
    options = EncodeOptions.preset("best", target_size=0.08)
    result = encode(model, options=options)
    assert result.report.ratio <= 0.08
    assert list(check_stream(peer, result.data)) == list(model)


@pytest.mark.parametrize("qp", [-38, -20])
@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models(peer: Peer, models_folder: Path, name: str, qp: int) -> None:
    model = load_file(models_folder / f"{name}.safetensors")
    options = EncodeOptions(qp=qp, lambda_scale=float(qp == -20), scan_order=int(qp == -20))
    data = encode(model, options=options).data
    check_stream(peer, without_map(data))
    assert list(decode(data)) == list(model)


def test_part_of_a_transformer(peer: Peer, models_folder: Path) -> None:
    whole: dict[str, Any] = load_file(models_folder / "minilm_l6_v2_encoder.safetensors")
    part = dict(list(whole.items())[:6])
    check_stream(peer, encode(part, options=EncodeOptions(qp=-24, row_skipping=True)).data)


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize("name", ["cnn", "residual", "separable"])
def test_calibrated_and_corrected_networks(peer: Peer, name: str, tune: bool) -> None:
    pytest.importorskip("torch")
    from conformance.subjects import digits_networks
    from nnr_codec.experiments.evaluation import trained_module

    subject = getattr(digits_networks, name)()
    options = EncodeOptions(qp=-22, tune=tune)
    module = trained_module(subject)
    for part in module.modules():
        if hasattr(part, "num_batches_tracked"):
            part.num_batches_tracked = None  # int64, which the reference does not have
    result = encode(module, options=options, calibration=list(subject.calibration()))
    assert "result" in {tensor.feedback for tensor in result.report.tensors}
    assert bool(result.report.folded) == any("running_var" in n for n in module.state_dict())
    check_stream(peer, without_map(result.data))


@pytest.mark.parametrize("qp", [-38, -24])
@pytest.mark.parametrize("name", REAL_MODELS)
def test_no_larger_than_theirs(peer: Peer, models_folder: Path, name: str, qp: int) -> None:
    """At the same options, the defaults of both: dependent quantization, indices searched."""
    model = load_file(models_folder / f"{name}.safetensors")
    ours = encode(model, options=EncodeOptions(qp=qp)).data
    assert len(ours) <= len(peer.encode(model, qp=qp))


def test_peer_failures_are_reported(peer: Peer) -> None:
    """The comparison would be worthless if a failing reference passed for an agreeing one."""
    data = bytearray(encode({"w": np.ones((4, 4), np.float32)}).data)
    data[-1] ^= 0xFF
    with pytest.raises(PeerFailure) as caught:
        peer.decode(bytes(data))
    assert caught.value.kind in ("error", "crash", "hang")
    assert decode(encode({"w": np.ones((4, 4), np.float32)}).data)["w"].shape == (4, 4)
