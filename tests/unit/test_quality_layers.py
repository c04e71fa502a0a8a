"""Quality layers: what each of them makes, what they cost, and what is left when a file is cut."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from factored_streams_support import mixture

import nnr_codec
from nnr_codec import EncodeOptions, NnrWarning
from nnr_codec.bitstream import parse_units
from nnr_codec.decoding.stream_decoder import StreamDecoder
from nnr_codec.decoding.updates.quality_layers import Buffer

LAYERED = EncodeOptions(qp=-26, quality_layers=3)
WEIGHTS = ("conv.weight", "fc.weight", "half.weight")


def model() -> dict[str, Any]:
    """Weights of which the distribution is that of trained ones, and all else that models have."""
    rng = np.random.default_rng(4)
    half = rng.laplace(0, 0.05, (48, 40)).astype(ml_dtypes.bfloat16)
    return {
        "conv.weight": rng.laplace(0, 0.05, (32, 16, 3, 3)).astype(np.float32),
        "conv.bias": rng.normal(0, 0.1, 32).astype(np.float32),
        "steps": np.array(7),
        "fc.weight": rng.laplace(0, 0.05, (64, 96)).astype(np.float32),
        "half.weight": half,
        "small.weight": rng.laplace(0, 0.05, (31, 33)).astype(np.float32),
        "mask": rng.random(50) < 0.5,
        "empty": np.zeros((0, 3), np.float32),
    }


MODEL = model()
DATA = nnr_codec.encode(MODEL, options=LAYERED).data or b""
SIZES = nnr_codec.open(DATA).info().quality_layers


def error(tensors: Any, names: tuple[str, ...] = WEIGHTS) -> float:
    pairs = [(MODEL[n].astype(np.float64), tensors[n].astype(np.float64)) for n in names]
    energy = sum(float(np.square(values).sum()) for values, _ in pairs)
    return sum(float(np.square(a - b).sum()) for a, b in pairs) / energy


def equal(first: Any, second: Any) -> bool:
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name])
        for name in first
    )


def read_all(data: Any, **options: Any) -> list[Any]:
    """What all ways of reading make of it."""
    decoder = StreamDecoder(**options)
    outlines = {t.name: (t.values.shape, t.values.dtype) for t in decoder.outline(data)}
    tensors = dict(nnr_codec.stream_tensors(data, **options))
    assert outlines == {name: (v.shape, v.dtype) for name, v in tensors.items()}
    return [tensors, nnr_codec.decode(data, **options), dict(nnr_codec.open(data, **options))]


class TestModels:
    def test_each_layer_makes_the_model_better(self) -> None:
        errors = [error(nnr_codec.decode(DATA, quality=quality)) for quality in (1, 2, 3)]
        assert errors[1] < errors[0] / 5  # the steps have the ratio 3
        assert errors[2] < errors[1] / 5

    def test_all_ways_of_reading(self) -> None:
        for quality in (1, 2, 3, None):
            first, *others = read_all(DATA, quality=quality)
            assert list(first) == list(MODEL)
            assert all(equal(first, other) for other in others)
        assert equal(nnr_codec.decode(DATA), nnr_codec.decode(DATA, quality=3))

    def test_all_but_large_weights_is_in_the_first_layer(self) -> None:
        coarse = nnr_codec.decode(DATA, quality=1)
        fine = nnr_codec.decode(DATA)
        for name in set(MODEL) - set(WEIGHTS):
            assert np.array_equal(coarse[name], fine[name])
            if MODEL[name].dtype != np.float32:
                assert np.array_equal(coarse[name], MODEL[name])

    def test_the_last_layer_is_as_good_as_one_stream(self) -> None:
        single = error(
            nnr_codec.decode(nnr_codec.encode(MODEL, options=EncodeOptions(qp=-26)).data)
        )
        assert 0.8 * single < error(nnr_codec.decode(DATA)) < 1.25 * single

    def test_it_is_that_of_uniform_quantization(self) -> None:
        """Steps are nested: the layers add up to the integers of the last step."""
        options = EncodeOptions(qp=-23, nonweight_qp=-72, dq=False)
        single = nnr_codec.decode(nnr_codec.encode(MODEL, options=options).data)
        names = ["conv.weight", "fc.weight"]
        assert all(np.array_equal(single[n], nnr_codec.decode(DATA)[n]) for n in names)

    def test_they_cost_little(self) -> None:
        rng = np.random.default_rng(0)
        large = {"w": rng.laplace(0, 0.05, (512, 512)).astype(np.float32)}
        for qp, most in ((-38, 1.04), (-24, 1.09)):
            single = nnr_codec.encode(large, options=EncodeOptions(qp=qp)).data or b""
            layers = nnr_codec.encode(large, options=replace(LAYERED, qp=qp)).data or b""
            assert len(layers) < most * len(single)

    @pytest.mark.parametrize("layers", [2, 4])
    def test_other_numbers(self, layers: int) -> None:
        data = nnr_codec.encode(MODEL, options=replace(LAYERED, quality_layers=layers)).data
        errors = [error(nnr_codec.decode(data, quality=q + 1)) for q in range(layers)]
        assert errors == sorted(errors, reverse=True)
        assert equal(nnr_codec.decode(data), nnr_codec.decode(DATA))

    @pytest.mark.parametrize("layers", ["dense", "factorized"])
    def test_factors(self, layers: Any) -> None:
        dense, factors = mixture()
        result = nnr_codec.encode(dense, options=LAYERED, factorizations=factors, verify=True)
        coarse = nnr_codec.decode(result.data, quality=1, layers=layers)
        fine = nnr_codec.decode(result.data, layers=layers)
        assert list(coarse) == list(fine)
        opened = nnr_codec.open(result.data, layers=layers)
        assert equal(fine, dict(opened))
        assert len(opened.factorizations) == len(factors)

    def test_the_map_of_the_file(self, tmp_path: Path) -> None:
        nnr_codec.encode(MODEL, tmp_path / "model.nnr", LAYERED)
        assert (tmp_path / "model.nnr").read_bytes() == DATA
        text = list(parse_units(DATA[: SIZES[0]]))[2].record.topology_data
        assert json.loads(text)["quality_layers"] == list(SIZES)
        assert sum(SIZES) == len(DATA)
        first, *others = read_all(tmp_path / "model.nnr")
        assert all(equal(first, other) for other in others)


class TestReport:
    def test_sizes(self) -> None:
        result = nnr_codec.encode(MODEL, options=LAYERED, verify=True)
        assert result.report.bytes == len(DATA)
        info = nnr_codec.open(DATA).info()
        assert info.bytes == len(DATA)
        by_name = {tensor.name: tensor for tensor in info.tensors}
        for report in result.report.tensors:
            assert by_name[report.name].bytes == report.bytes

    def test_errors_are_those_of_the_last_layer(self) -> None:
        report = nnr_codec.encode(MODEL, options=LAYERED).report
        decoded = nnr_codec.decode(DATA)
        for tensor in report.tensors:
            if tensor.name in WEIGHTS:
                difference = MODEL[tensor.name].astype(float) - decoded[tensor.name].astype(float)
                assert tensor.squared_error == pytest.approx(np.square(difference).sum(), rel=1e-6)

    def test_targets_are_those_of_all_layers(self) -> None:
        allowed = len(DATA) * 3 // 4
        options = replace(LAYERED, target_size=allowed)
        result = nnr_codec.encode(MODEL, options=options)
        assert 0.85 * allowed < len(result.data or b"") <= allowed
        options = replace(LAYERED, max_nmse=0.001)
        assert error(nnr_codec.decode(nnr_codec.encode(MODEL, options=options).data)) <= 0.0011

    def test_tables_of_contents(self) -> None:
        data = nnr_codec.encode(MODEL, options=replace(LAYERED, index=True)).data or b""
        first, *others = read_all(data)
        assert all(equal(first, other) for other in [*others, nnr_codec.decode(DATA)])
        for position in range(0, len(data), 431):
            damaged = bytearray(data)
            damaged[position] ^= 8
            with pytest.raises(nnr_codec.BitstreamError):
                nnr_codec.decode(bytes(damaged))


class TestCuts:
    @pytest.mark.parametrize("quality", [1, 2])
    def test_of_a_cut_file_whole_layers_are_left(self, quality: int) -> None:
        expected = nnr_codec.decode(DATA, quality=quality)
        end = sum(SIZES[:quality])
        for length in (end, end + 1, end + 2, end + 5, end + SIZES[quality] - 1):
            for source in (DATA[:length], io.BytesIO(DATA[:length])):
                with pytest.warns(NnrWarning, match=f"from number {quality + 1} on, of 3"):
                    assert equal(nnr_codec.decode(source), expected)
            with pytest.warns(NnrWarning, match="is cut"):
                assert equal(dict(nnr_codec.open(DATA[:length])), expected)

    def test_what_is_not_wanted_may_be_missing(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nnr_codec.decode(DATA[: SIZES[0]], quality=1)

    def test_the_first_layer_has_to_be_whole(self) -> None:
        for length in (SIZES[0] - 1, SIZES[0] // 2, 300):
            with pytest.raises(nnr_codec.TruncatedBitstream):
                nnr_codec.decode(DATA[:length])

    def test_a_pipe_is_read_as_far_as_is_wanted(self) -> None:
        source = io.BytesIO(DATA)
        nnr_codec.decode(source, quality=2)
        assert source.tell() == sum(SIZES[:2])

    def test_of_ranges_no_more_is_looked_at(self) -> None:
        class Watched(Buffer):
            end = 0

            def view(self, start: int, stop: int) -> memoryview:
                self.end = max(self.end, stop)
                return super().view(start, stop)

        source = Watched(DATA)
        nnr_codec.decode(source, quality=1)
        assert source.end <= SIZES[0]

    def test_the_first_layer_alone_comes_as_it_arrives(self) -> None:
        class Pipe(io.BytesIO):
            last = 0

            def read(self, size: int | None = -1) -> bytes:
                data = super().read(size)
                self.last = self.tell()
                return data

        pipe = Pipe(DATA)
        tensors = nnr_codec.stream_tensors(pipe, quality=1)
        next(tensors)
        assert pipe.last < SIZES[0] * 3 // 4
        assert sum(1 for _ in tensors) == len(MODEL) - 1
        assert pipe.last == SIZES[0]

    def test_endless_data_is_read_as_far_as_is_allowed(self) -> None:
        class Endless(io.RawIOBase):
            def __init__(self) -> None:
                self.count = 0
                self._start = io.BytesIO(DATA[: SIZES[0]])

            def read(self, size: int = -1, /) -> bytes:
                data = self._start.read(size) or bytes(size)
                self.count += len(data)
                return data

        limits = nnr_codec.DecodeLimits(max_stream_bytes=len(DATA) - 1)
        for source in (Endless(), DATA):
            with pytest.raises(nnr_codec.LimitExceeded, match="max_stream_bytes"):
                nnr_codec.decode(source, limits=limits)
        source = Endless()
        with pytest.raises(nnr_codec.LimitExceeded, match="max_stream_bytes"):
            nnr_codec.decode(
                source, base=[DATA], limits=nnr_codec.DecodeLimits(max_stream_bytes=10**7)
            )
        assert source.count < 2 * 10**7

    def test_the_quality_has_to_be_there(self) -> None:
        plain = nnr_codec.encode(MODEL).data
        for data, quality in ((DATA, 4), (DATA, 0), (plain, 2)):
            for read in (nnr_codec.decode, nnr_codec.open):
                with pytest.raises(nnr_codec.InvalidOptions, match="quality"):
                    read(data, quality=quality)
        assert equal(nnr_codec.decode(plain, quality=1), nnr_codec.decode(plain))


class TestRefusals:
    def test_bytes_behind_the_last_layer(self) -> None:
        for source in (DATA + b"\0", io.BytesIO(DATA + b"\0")):
            with pytest.raises(nnr_codec.InvalidBitstream, match="more bytes"):
                nnr_codec.decode(source)

    def test_layers_that_are_not_announced(self) -> None:
        plain = nnr_codec.encode(MODEL).data or b""
        with pytest.raises(nnr_codec.InvalidBitstream, match="NNR_STR must be the first"):
            nnr_codec.decode(plain + plain)

    def test_layers_of_another_file(self) -> None:
        other = {**MODEL, "conv.weight": MODEL["conv.weight"][::-1]}
        data = nnr_codec.encode(other, options=LAYERED).data or b""
        sizes = nnr_codec.open(data).info().quality_layers
        with pytest.raises(nnr_codec.BitstreamError):
            nnr_codec.decode(data[: sizes[0]] + DATA[SIZES[0] :])
        second = SIZES[0] + SIZES[1]
        third_twice = DATA[: SIZES[0]] + DATA[second:] + DATA[second:]
        with pytest.raises(nnr_codec.BitstreamError):
            nnr_codec.decode(third_twice[: len(DATA)])

    def test_they_are_no_parents(self) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="it can be a base"):
            nnr_codec.decode(DATA, parents=[DATA])

    @pytest.mark.parametrize(
        "options",
        [
            replace(LAYERED, lossless=True),
            replace(LAYERED, profile=1),
            replace(LAYERED, qp_density=7, qp=-1000, nonweight_qp=-2000),
        ],
    )
    def test_options_that_do_not_go_together(self, options: EncodeOptions) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="quality_layers"):
            nnr_codec.encode(MODEL, options=options)

    def test_no_base_beside_a_quality(self) -> None:
        for read in (nnr_codec.decode, nnr_codec.open):
            with pytest.raises(nnr_codec.InvalidOptions, match="quality"):
                read(DATA, base=[DATA], quality=1)
            with pytest.raises(nnr_codec.InvalidOptions, match="base"):
                read(DATA, base="model.nnr")
            with pytest.raises(nnr_codec.InvalidOptions, match="quality"):
                read(DATA, quality="1")

    def test_no_base(self) -> None:
        with pytest.raises(nnr_codec.InvalidOptions, match="quality_layers"):
            nnr_codec.encode(MODEL, options=LAYERED, base=[DATA])


class TestUpdates:
    def test_of_all_layers(self) -> None:
        changed = {**MODEL, "fc.weight": MODEL["fc.weight"] + np.float32(0.05)}
        options = EncodeOptions(qp=-26)
        update = nnr_codec.encode(changed, base=[DATA], options=options).data
        decoded = nnr_codec.decode(update, base=[DATA])
        before = error(nnr_codec.decode(DATA), ("fc.weight",))
        difference = changed["fc.weight"] - decoded["fc.weight"]
        assert np.square(difference).sum() < 2 * before * np.square(MODEL["fc.weight"]).sum()
        assert np.array_equal(decoded["conv.weight"], nnr_codec.decode(DATA)["conv.weight"])
