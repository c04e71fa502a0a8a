"""The methods: what comes back, what it takes, and how another codec's commands are run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zstandard")
pytest.importorskip("constriction")

from nnr_codec import EncodeOptions, InvalidModel, InvalidOptions, encode
from nnr_codec.calibration.moments import Calibration, ResultMoments
from nnr_codec.experiments.methods import codec_from
from nnr_codec.experiments.methods.ablation import without
from nnr_codec.experiments.methods.external import CommandFailure

RNG = np.random.default_rng(3)
MODEL = {
    "conv.weight": RNG.normal(0, 0.1, (8, 4, 3, 3)).astype(np.float32),
    "conv.weight.scale": RNG.normal(0, 1, (3, 2)).astype(np.float32),
    "zero.weight": np.zeros((3, 5), np.float32),
    "bias": RNG.normal(0, 1, 8).astype(np.float32),
    "steps": np.array([3, -1], np.int64),
    "scalar": np.array(2.5, np.float32),
}


def through(codec: str, model: dict[str, np.ndarray] = MODEL, **options: Any) -> dict[str, Any]:
    made = codec_from(codec, options, Path())
    encoded = made.encode(model)
    assert encoded.seconds > 0
    assert made.encode(model).data == encoded.data
    return dict(made.decode(encoded.data).tensors)


def test_byte_planes_are_lossless() -> None:
    found = through("byteplane")
    assert found.keys() == MODEL.keys()
    for name, values in MODEL.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert found[name].tobytes() == values.tobytes()


def test_byte_planes_gather_exponents() -> None:
    weights = {"w": RNG.normal(0, 0.05, (200, 200)).astype(np.float32)}
    size = len(codec_from("byteplane", {}, Path()).encode(weights).data)
    assert 0.75 < size / weights["w"].nbytes < 0.9


def test_half_precision() -> None:
    found = through("fp16")
    for name, values in MODEL.items():
        expected = values.astype(np.float16) if values.dtype == np.float32 else values
        assert np.array_equal(found[name], expected.astype(values.dtype))
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
    with pytest.raises(InvalidModel, match="'w': holds values beyond binary16"):
        through("fp16", {"w": np.array([1e6], np.float32)})


@pytest.mark.parametrize("bits", [8, 5, 2])
def test_integers_per_channel(bits: int) -> None:
    found = through("int8", bits=bits)
    for name in ("bias", "steps", "scalar", "zero.weight"):
        assert np.array_equal(found[name], MODEL[name])
    weight, original = found["conv.weight"], MODEL["conv.weight"]
    largest = np.abs(original).max(axis=(1, 2, 3))
    assert np.abs(weight).max(axis=(1, 2, 3)) == pytest.approx(largest, rel=1e-6)
    step = largest / (2 ** (bits - 1) - 1)
    assert (np.abs(weight - original).max(axis=(1, 2, 3)) <= step / 2 * 1.0001).all()
    assert len(np.unique(weight[0])) <= 2**bits - 1


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-44, 3e-43, 3e38])
def test_integers_at_the_edges_of_float32(largest: float) -> None:
    values = np.array([[largest, -largest / 2], [0.25, 1]], np.float32)
    found = through("int8", {"w": values, "empty": np.zeros((0, 3), np.float32)})
    assert np.abs(found["w"] - values).max() <= max(largest / 200, 0.004)
    assert np.sign(found["w"][0, 0]) in (0, np.sign(largest))
    assert found["empty"].shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_integers_are_of_finite_weights(value: float) -> None:
    with pytest.raises(InvalidModel, match="'w': holds values that are not finite"):
        through("int8", {"w": np.array([[1, value]], np.float32)})


def test_nnr_is_the_codec_with_its_options() -> None:
    options = {"qp": -20, "dq": False}
    made = codec_from("nnr", options, Path()).encode(MODEL)
    assert made.data == encode(MODEL, options=EncodeOptions(**options)).data
    assert sum(made.breakdown.values()) == len(made.data)
    assert made.yardsticks.keys() == {"payload_bytes", "entropy_bytes", "ans_bytes"}


def test_identities_tell_operating_points_apart() -> None:
    identities = [
        str(codec_from(name, options, Path()).identity())
        for name, options in [
            ("nnr", {"qp": -20}),
            ("nnr", {"qp": -21}),
            ("nnr", {"overrides": {"a": {"qp": 1}}}),
            ("nnr", {"qp": -20, "calibration_stride": 1}),
            ("nnr", {"qp": -20, "calibration_stride": 2}),
            ("nnr", {"qp": -20, "calibration_stride": 2, "calibration_without": ["rows"]}),
            ("int8", {"bits": 8}),
            ("int8", {"bits": 7}),
            ("fp16", {}),
            ("byteplane", {}),
        ]
    ]
    assert len(set(identities)) == len(identities)


def test_parts_of_a_calibration_that_are_taken_away() -> None:
    mixed = [RNG.normal(0, 1, (size, 2 * size)) for size in (36, 8)]
    columns, rows = (each @ each.T / np.linalg.norm(each @ each.T) for each in mixed)
    moments = ResultMoments(columns[None, None], rows, count=9)
    known = Calibration({}, 9, (), {"conv.weight": moments}, {"conv.weight": 1.0})
    assert without(known, []) is known
    assert without(known, ["rows"]).result["conv.weight"].rows is None
    assert without(known, ["columns"]).result["conv.weight"].columns is None
    assert without(known, ["rows", "columns"]).result == {}
    assert without(known, ["feedback"]).result == {}
    assert without(known, ["feedback"]).sensitivities == known.sensitivities
    streams = {
        codec_from("nnr", {"calibration_stride": 1, "calibration_without": parts}, Path())
        .encode(MODEL, known)
        .data
        for parts in ([], ["rows"], ["columns"], ["feedback"])
    }
    assert len(streams) == 4


COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
TOLD = COPY + "; print('hello'); print('{\"encode_seconds\": 7.5, \"decode_seconds\": 8.5}')"


def external(script: str, **options: Any) -> Any:
    commands = {
        "encode": ["{python}", "-c", script, "{model}", "{stream}"],
        "decode": ["{python}", "-c", script, "{stream}", "{decoded}"],
    }
    return codec_from("external", {**commands, **options}, Path("/plans"))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_another_codec(suffix: str) -> None:
    codec = external(COPY, format=suffix)
    encoded = codec.encode(MODEL)
    assert encoded.seconds < 60
    decoded = codec.decode(encoded.data).tensors
    assert all(np.array_equal(decoded[name], values) for name, values in MODEL.items())


def test_another_codec_may_tell_its_own_time() -> None:
    codec = external(TOLD)
    encoded = codec.encode(MODEL)
    assert (encoded.seconds, codec.decode(encoded.data).seconds) == (7.5, 8.5)


def test_arguments_of_another_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_OPTION", "from outside")
    script = "import sys; open(sys.argv[1], 'w').write('|'.join(sys.argv[2:]))"
    codec = external(
        script,
        encode=["{python}", "-c", script, "{stream}", "qp={qp}", "{folder}/x", "${SOME_OPTION}"],
        qp=-20,
    )
    assert codec.encode(MODEL).data == b"qp=-20|/plans/x|from outside"
    monkeypatch.delenv("SOME_OPTION")
    with pytest.raises(CommandFailure, match="SOME_OPTION is not set"):
        codec.encode(MODEL)


def test_commands_that_fail() -> None:
    failing = external("import sys; sys.exit('no such network')")
    with pytest.raises(CommandFailure, match="exit code 1: no such network"):
        failing.encode(MODEL)
    with pytest.raises(CommandFailure, match=r"did not write \{stream\}"):
        external("").encode(MODEL)
    with pytest.raises(CommandFailure, match="cannot be run"):
        external(COPY, encode=["/no/such/program"]).encode(MODEL)
    with pytest.raises(CommandFailure, match=r"took over 0\.2 s"):
        external("import time; time.sleep(60)", timeout=0.2).encode(MODEL)
    with pytest.raises(InvalidModel):
        external("import sys; open(sys.argv[2], 'w').write('x')").decode(b"y")


def test_the_version_of_another_codec_is_part_of_its_identity() -> None:
    version = ["{python}", "-c", "print('4.5')"]
    assert external(COPY, version=version).identity()["version"] == "4.5"


def test_a_changed_script_is_another_codec(tmp_path: Path) -> None:
    script = tmp_path / "codec.py"
    script.write_text(COPY)
    command = ["{python}", "{folder}/codec.py", "{model}", "{stream}"]
    options = {"encode": command, "decode": ["{python}", "-c", COPY, "{stream}", "{decoded}"]}
    before = codec_from("external", options, tmp_path).identity()
    script.write_text(COPY + "  # repaired")
    assert codec_from("external", options, tmp_path).identity() != before


@pytest.mark.skipif(sys.platform == "win32", reason="it needs a shell")
def test_what_a_command_leaves_behind_is_not_waited_for() -> None:
    codec = external("", encode=["sh", "-c", "sleep 60 & echo $! > {stream}"])
    left = int(codec.encode(MODEL).data)
    os.kill(left, signal.SIGTERM)  # raises if it is not there any more


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"qp": 3}, "qp"),
        ({"encode": ["x", "{qp}"]}, "qp"),
        ({"encode": "x"}, "external: encode"),
        ({"encode": [3]}, "external: encode"),
        ({"format": ".h5"}, "format"),
        ({"encode": []}, "encode"),
        ({"decode": []}, "decode"),
        ({"timeout": "long"}, "external: timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
    ],
)
def test_wrong_options_of_another_codec(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOptions) as caught:
        external(COPY, **options)
    assert caught.value.option == option


def test_this_python_is_what_commands_get() -> None:
    script = "import sys; open(sys.argv[1], 'w').write(sys.executable)"
    codec = external(script, encode=["{python}", "-c", script, "{stream}"])
    assert codec.encode(MODEL).data.decode() == sys.executable
