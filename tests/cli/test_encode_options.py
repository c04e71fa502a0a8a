"""nnr-encode: every option of the coding has the effect that it announces."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import Run, load, random_weights, save

import nnr_codec
from nnr_codec import InvalidOptions
from nnr_codec.cli import _common as common
from nnr_codec.cli._options import parse_override
from nnr_codec.options import TENSOR_OPTIONS, DecompositionOptions, EncodeOptions
from nnr_codec.options.kinds import called
from nnr_codec.support.digest import digest

WEIGHTS = ["first.weight", "second.weight"]
BIASES = ["first.bias", "second.bias"]
LOW_RANK = DecompositionOptions("lr", rank=2)


class Encoded:
    """A model encoded with some options: what nnr-encode and nnr-info say of it."""

    def __init__(self, run: Run, model: Path, *options: Any) -> None:
        output = model.with_suffix(".nnr")
        done = run("nnr-encode", model, "-o", output, "-f", "--json", *options)
        assert done.code == 0, done.err
        self.err = done.err
        self.report = json.loads(done.out)
        self.data = output.read_bytes()
        self.info = json.loads(run("nnr-info", output, "--json").out)

    def reported(self, key: str) -> dict[str, Any]:
        """Return what nnr-encode says of each tensor."""
        return {tensor["name"]: tensor[key] for tensor in self.report["per_tensor"]}

    def coded(self, key: str) -> dict[str, Any]:
        """Return what the stream says of each tensor."""
        return {tensor["name"]: tensor[key] for tensor in self.info["per_tensor"]}


def with_value(names: list[str], value: Any) -> dict[str, Any]:
    return dict.fromkeys(names, value)


class TestQuantization:
    def test_defaults(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model)
        assert encoded.coded("qp") == with_value(WEIGHTS, -38) | with_value(BIASES, -75)
        assert set(encoded.reported("kind").values()) == {"dq"}
        assert set(encoded.coded("unary_length").values()) <= set(range(1, 33))  # automatic
        assert set(encoded.coded("scan_order").values()) == {0}
        assert (encoded.info["profile"], encoded.info["qp_density"]) == (0, 2)

    def test_qp(self, run: Run, model: Path) -> None:
        fine, coarse = Encoded(run, model), Encoded(run, model, "--qp", "-20")
        assert coarse.coded("qp") == with_value(WEIGHTS, -20) | with_value(BIASES, -75)
        assert coarse.report["bytes"] < fine.report["bytes"]
        assert coarse.report["nmse"] > 10 * fine.report["nmse"]

    def test_nonweight_qp(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model, "--nonweight-qp", "-40")
        assert encoded.coded("qp") == with_value(WEIGHTS, -38) | with_value(BIASES, -40)

    def test_qp_density(self, run: Run, model: Path) -> None:
        plain = Encoded(run, model)
        dense = Encoded(run, model, "--qp-density", "3", "--qp", "-76", "--nonweight-qp", "-150")
        assert dense.info["qp_density"] == 3
        assert dense.report["nmse"] == pytest.approx(plain.report["nmse"], rel=0.5)  # same step
        half = Encoded(run, model, "--qp-density", "3")
        assert half.report["nmse"] > 10 * plain.report["nmse"]  # 2 ** (38 / 8) times the step

    def test_dq(self, run: Run, model: Path) -> None:
        on, off = Encoded(run, model, "--dq"), Encoded(run, model, "--no-dq")
        assert set(on.coded("dq").values()) == {True}
        assert set(off.coded("dq").values()) == {False}
        assert set(off.reported("kind").values()) == {"uniform"}
        assert on.data == Encoded(run, model).data != off.data

    @pytest.mark.parametrize("quantizer", ["--dq", "--no-dq"])
    def test_lambda_scale(self, run: Run, model: Path, quantizer: str) -> None:
        plain = Encoded(run, model, "--qp", "-16", quantizer)
        cheap = Encoded(run, model, "--qp", "-16", quantizer, "--lambda-scale", "0.7")
        assert cheap.report["bytes"] < plain.report["bytes"]
        assert cheap.report["nmse"] > plain.report["nmse"]


class TestCoding:
    def test_profile(self, run: Run, model: Path) -> None:
        zero, one = Encoded(run, model, "--profile", "0"), Encoded(run, model, "--profile", "1")
        assert (zero.info["profile"], one.info["profile"]) == (0, 1)
        assert zero.data == Encoded(run, model, "--profile", "auto").data

    def test_unary_length(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model, "--unary-length", "3")
        assert set(encoded.coded("unary_length").values()) == {3}

    def test_scan_order(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model, "--scan-order", "2")
        assert encoded.coded("scan_order") == with_value(WEIGHTS, 2) | with_value(BIASES, 0)

    def test_search_initialization(self, run: Run, model: Path) -> None:
        searched = Encoded(run, model, "--search-initialization")
        not_searched = Encoded(run, model, "--no-search-initialization")
        assert searched.report["bytes"] < not_searched.report["bytes"]
        assert searched.report["nmse"] == not_searched.report["nmse"]

    def test_row_skipping(self, run: Run, tmp_path: Path) -> None:
        weights = random_weights(64, 64)
        weights[8:] = 0
        model = save(tmp_path / "zeros.safetensors", {"w": weights})
        off = Encoded(run, model, "--profile", "1", "--no-row-skipping")
        on = Encoded(run, model, "--row-skipping")
        assert on.info["profile"] == 1  # chosen because the tool needs it
        assert on.report["bytes"] < off.report["bytes"]
        assert run("nnr-encode", model, "--dry-run", "--row-skipping", "--profile", "0").code == 2

    def test_codebook(self, run: Run, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)  # near few values: of few alone a table is smaller
        few = rng.choice([-0.71, 0.02, 0.33], (40, 40)) + rng.normal(0, 1e-6, (40, 40))
        few = few.astype(np.float32)
        model = save(tmp_path / "few.safetensors", {"w": few})
        off = Encoded(run, model, "--no-dq", "--no-codebook")
        assert Encoded(run, model, "--no-dq").coded("codebook_size") == {"w": 3}  # automatic
        on = Encoded(run, model, "--no-dq", "--codebook")
        assert off.coded("codebook_size") == {"w": None}
        assert on.coded("codebook_size") == {"w": 3}
        assert on.report["bytes"] < off.report["bytes"]
        assert run("nnr-info", tmp_path / "few.nnr").out.count("codebook(3)") == 1
        np.testing.assert_array_equal(
            nnr_codec.decode(on.data)["w"], nnr_codec.decode(off.data)["w"]
        )


class TestSeries:
    @pytest.fixture
    def series(self, run: Run, tmp_path: Path) -> tuple[Path, Path]:
        """A stream, and the model of an update that changes the same places by as much again."""
        sparse = random_weights(48, 48) * (np.random.default_rng(9).random((48, 48)) < 0.2)
        model = save(tmp_path / "base.safetensors", {"w": sparse.astype(np.float32)})
        assert run("nnr-encode", model, "-o", tmp_path / "base.nnr", "-q").code == 0
        update = save(tmp_path / "update.safetensors", {"w": sparse.astype(np.float32) * 1.5})
        return tmp_path / "base.nnr", update

    def test_parent(self, run: Run, series: tuple[Path, Path]) -> None:
        parent, update = series
        alone, child = Encoded(run, update), Encoded(run, update, "--parent", parent)
        assert (alone.info["profile"], child.info["profile"]) == (0, 1)
        assert child.report["bytes"] < 0.9 * alone.report["bytes"]
        expected = nnr_codec.decode(alone.data)["w"]
        found = nnr_codec.decode(child.data, parents=[parent])["w"]
        np.testing.assert_array_equal(found, expected)
        with pytest.raises(nnr_codec.BitstreamError):
            nnr_codec.decode(child.data)

    def test_contexts(self, run: Run, series: tuple[Path, Path]) -> None:
        parent, update = series

        def size(*options: str) -> int:
            return int(Encoded(run, update, "--parent", parent, *options).report["bytes"])

        none = size("--no-temporal-contexts", "--no-history-contexts")
        temporal = size("--temporal-contexts", "--no-history-contexts")
        history = size("--no-temporal-contexts", "--history-contexts")
        assert temporal < none
        assert history < none
        assert size() <= min(temporal, history)

    def test_parents_need_profile_1(self, run: Run, series: tuple[Path, Path]) -> None:
        parent, update = series
        done = run("nnr-encode", update, "--dry-run", "--parent", parent, "--profile", "0")
        assert done.code == 2
        assert "profile" in done.err


class TestSelection:
    def test_include(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model, "--include", "first.*", "--include", "*.bias")
        exact = {name for name, kind in encoded.reported("kind").items() if kind == "bits"}
        assert exact == {"second.weight"}

    def test_exclude_has_precedence(self, run: Run, model: Path) -> None:
        encoded = Encoded(run, model, "--include", "*.weight", "--exclude", "second*")
        quantized = {name for name, kind in encoded.reported("kind").items() if kind == "dq"}
        assert quantized == {"first.weight"}

    def test_set(self, run: Run, model: Path) -> None:
        options = ["--unary-length", "9", "--set", "*.weight=qp:-20,unary-length:5"]
        options += ["--set", "second.*=dq:off,qp:-30,unary-length:auto"]
        encoded = Encoded(run, model, *options)
        assert encoded.coded("qp") == {
            "first.weight": -20, "first.bias": -75, "second.weight": -30, "second.bias": -30,
        }  # fmt: skip
        assert encoded.coded("unary_length")["first.weight"] == 5
        assert encoded.coded("unary_length")["first.bias"] == 9
        assert encoded.coded("unary_length")["second.weight"] not in (5, 9)
        uniform = {name for name, kind in encoded.reported("kind").items() if kind == "uniform"}
        assert uniform == {"second.weight", "second.bias"}

    @pytest.mark.parametrize("option", ["--include", "--exclude", "--set"])
    def test_globs_that_match_nothing_give_a_warning(
        self, run: Run, model: Path, option: str
    ) -> None:
        argument = "third*" + ("=qp:-20" if option == "--set" else "")
        encoded = Encoded(run, model, option, argument)
        assert encoded.err == "nnr-encode: warning: 'third*' matches no tensor\n"
        assert encoded.report["unmatched_globs"] == ["third*"]
        assert Encoded(run, model, "--include", "first*").err == ""

    def test_values_too_large_for_a_step_give_a_warning(self, run: Run, tmp_path: Path) -> None:
        large = np.array([1e9, -2e9], np.float32)
        encoded = Encoded(run, save(tmp_path / "large.safetensors", {"w": large}))
        assert "'w' holds values as large as 2e+09, too large for qp -75" in encoded.err
        np.testing.assert_array_equal(nnr_codec.decode(encoded.data)["w"], large)


class TestLossless:
    def test_every_bit_comes_back(self, run: Run, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "back.safetensors"
        encoded = Encoded(run, model, "--lossless")
        assert set(encoded.reported("kind").values()) <= {"bits", "raw"}
        assert encoded.report["nmse"] == 0
        (tmp_path / "m.nnr").write_bytes(encoded.data)
        expected = digest(load(model).items())
        assert run("nnr-decode", tmp_path / "m.nnr", "-o", output, "--verify", expected).code == 0
        for name, values in load(model).items():
            assert load(output)[name].tobytes() == values.tobytes()
        assert run("nnr-info", tmp_path / "m.nnr", "--digest").out == f"{expected}\n"

    def test_what_no_step_can_say(self, run: Run, tmp_path: Path) -> None:
        arrays = {"w": np.array([np.nan, -np.inf, -0.0], np.float16), "d": np.full(3, 6e38)}
        path = save(tmp_path / "m.npz", arrays)
        assert len(run("nnr-encode", path, "--dry-run").err.splitlines()) == 2  # warnings
        found = nnr_codec.decode(Encoded(run, path, "--lossless").data)
        assert all(found[name].tobytes() == values.tobytes() for name, values in arrays.items())


class TestUsage:
    def test_override(self) -> None:
        assert parse_override("a=b*=qp: -1 , dq:TRUE,lambda-scale:0.5") == (
            "a=b*", {"qp": -1, "dq": True, "lambda_scale": 0.5},
        )  # fmt: skip

    @pytest.mark.parametrize(
        "text",
        ["", "w", "=qp:1", "w=", "w=qp", "w=qp:x", "w=qp:1.5", "w=dq:2", "w=profile:1",
         "w=nothing:1", "w=qp:1,", "w=unary_length:0", "w=scan_order:5", "w=lambda_scale:-1",
         "w=lambda_scale:nan"],
    )  # fmt: skip
    def test_bad_overrides(self, run: Run, model: Path, text: str) -> None:
        done = run("nnr-encode", model, "--dry-run", "--set", text)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("nnr-encode: error: ")

    @pytest.mark.parametrize(
        "arguments",
        ["--qp -129", "--qp 128", "--qp 1.5", "--nonweight-qp x", "--qp-density 8",
         "--unary-length 0", "--unary-length 257", "--scan-order 5", "--profile 2",
         "--lambda-scale -1", "--lambda-scale inf", "--threads 0", "--threads x", "--nothing",
         "--ver", "--dry"],
    )  # fmt: skip
    def test_bad_options(self, run: Run, model: Path, arguments: str) -> None:
        done = run("nnr-encode", model, "-o", model.with_suffix(".nnr"), *arguments.split())
        assert (done.code, done.out) == (2, "")
        assert done.err
        assert not model.with_suffix(".nnr").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--compression-ratio 1.5", "--compression-ratio: has no effect without --decompose"),
            (
                "--qp 300",
                "--qp: 300 is not a whole number from -128 to 127, with a qp-density of 2",
            ),
            ("--nonweight-qp -65 --qp-density 1", "--nonweight-qp: -65 is not .* -64 to 63"),
            ("--qp 5000", "--qp: 5000 is not a whole number from -128 to 127"),
            ("--set *=qp:128", r"--set \*: qp: 128 is not a whole number from -128 to 127"),
            ("--set *=lambda_scale:-1", r"--set \*: lambda-scale: -1.0 is not"),
            ("--profile 0 --row-skipping", "--row-skipping: needs profile 1"),
        ],
    )
    def test_messages_name_flags(self, run: Run, model: Path, arguments: str, message: str) -> None:
        done = run("nnr-encode", model, "--dry-run", *arguments.split())
        assert (done.code, done.out) == (2, "")
        assert re.match(f"nnr-encode: error: {message}", done.err), done.err
        assert len(done.err.splitlines()) == 1

    @pytest.mark.parametrize(
        ("option", "nearest"),
        [
            ("--qp-densty=3", "'--qp-densty=3': did you mean --qp-density?"),
            ("--ver", "'--ver': did you mean --verify?"),
            ("--vers", "'--vers': did you mean --version?"),
            ("--nothing-like-it", "'--nothing-like-it'"),
            ("beside", "'beside'"),
        ],
    )
    def test_unknown_options(self, run: Run, model: Path, option: str, nearest: str) -> None:
        done = run("nnr-encode", model, "--dry-run", option)
        assert (done.code, done.out) == (2, "")
        first, second = done.err.splitlines()
        assert first == f"nnr-encode: error: unknown argument {nearest}"
        assert second == "nnr-encode --help lists the options"

    @pytest.mark.parametrize("program", ["nnr-encode", "nnr-decode", "nnr-info"])
    def test_no_input(self, run: Run, program: str) -> None:
        assert run(program).code == 2

    def test_threads(self, run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[int] = []

        class Pool(ThreadPoolExecutor):
            def __init__(self, threads: int) -> None:
                started.append(threads)
                super().__init__(threads)

        monkeypatch.setattr(common, "ThreadPoolExecutor", Pool)
        for threads in (1, 2, 3):
            assert run("nnr-encode", model, "--dry-run", "--threads", threads).code == 0
        assert started == [2, 3]


class TestTargetSize:
    @pytest.mark.parametrize(
        ("text", "allowed"),
        [("3000", 3000), ("2.5k", 2500), ("3 KiB", 3072), ("0.002M", 2000), ("40%", 0.4 * 6624)],
    )
    def test_is_met(self, run: Run, model: Path, text: str, allowed: float) -> None:
        encoded = Encoded(run, model, "--target-size", text)
        assert len(encoded.data) == encoded.report["bytes"] <= allowed
        offset = encoded.report["qp_offset"]
        assert encoded.coded("qp") == with_value(WEIGHTS, -38 + offset) | with_value(
            BIASES, -75 + offset
        )
        finer = Encoded(run, model, f"--qp={-39 + offset}", f"--nonweight-qp={-76 + offset}")
        assert finer.report["bytes"] > allowed

    def test_is_told(self, run: Run, model: Path) -> None:
        done = run("nnr-encode", model, "--dry-run", "--target-size", "1200")
        assert done.code == 0
        assert re.search(r", qp offset \+\d+, ", done.out)
        assert "offset" not in run("nnr-encode", model, "--dry-run").out
        found = run("nnr-encode", model, "--dry-run", "--json", "--target-size", "1200")
        assert json.loads(found.out)["bytes"] <= 1200

    def test_out_of_reach(self, run: Run, model: Path, tmp_path: Path) -> None:
        output = tmp_path / "small.nnr"
        done = run("nnr-encode", model, "-o", output, "--target-size", "1%")
        assert (done.code, done.out) == (1, "")
        expected = r"nnr-encode: error: --target-size: 66 bytes cannot be reached: .* takes \d+\n"
        assert re.fullmatch(expected, done.err)
        assert not output.exists()

    @pytest.mark.parametrize("text", ["", "x", "-5", "5 %%", "1e3", "5kb", "%"])
    def test_refusals(self, run: Run, model: Path, text: str) -> None:
        assert run("nnr-encode", model, "--dry-run", f"--target-size={text}").code == 2


class TestPresets:
    def test_explicit_options_win(self, run: Run, model: Path) -> None:
        default, best, fast = (
            Encoded(run, model, "--preset", name).data for name in ("default", "best", "fast")
        )
        assert default == Encoded(run, model).data
        assert len({default, best, fast}) == 3
        assert Encoded(run, model, "--preset", "best", "--no-allocation").data == default
        assert Encoded(run, model, "--preset", "fast", "--search-initialization").data == default

    def test_unknown(self, run: Run, model: Path) -> None:
        assert run("nnr-encode", model, "--dry-run", "--preset", "placebo").code == 2


class TestGroup:
    def test_group(self, run: Run, model: Path) -> None:
        on, off = Encoded(run, model), Encoded(run, model, "--no-group")
        assert on.data == Encoded(run, model, "--group").data
        assert on.report["bytes"] < off.report["bytes"]
        assert set(on.coded("kind").values()) == {"block"}
        assert set(off.coded("kind").values()) == {"float"}
        assert list(on.coded("qp")) == list(off.coded("qp"))
        assert on.coded("qp") == off.coded("qp")

    def test_in_the_table(self, run: Run, model: Path) -> None:
        lines = run("nnr-encode", model, "--dry-run", "-v").out.splitlines()
        assert [line.split()[-3:-1] for line in lines if ".bias" in line] == [["-", "-"]] * 2


def test_every_option_has_a_flag(run: Run) -> None:
    text = run("nnr-encode", "--help").out
    for options in (EncodeOptions, DecompositionOptions):
        names = {called(field) for field in fields(options)} - {"decomposition", "overrides"}
        assert [n for n in names if f"  --{n.replace('_', '-')}" not in text] == []


@pytest.mark.parametrize("name", TENSOR_OPTIONS)
def test_every_tensor_option_is_parsed_as_its_flag_is(name: str) -> None:
    texts = {"qp": "-7", "nonweight_qp": "-7", "lambda_scale": "0.5", "scan_order": "3",
             "unary_length": "9", "decompose": "none", "rank": "0.25", "energy": "0.5",
             "max_tensor_error": "0.5"}  # fmt: skip
    text = texts.get(name, "off")
    _, values = parse_override(f"w={name.replace('_', '-')}:{text}")
    options = EncodeOptions(overrides=(("w", values),), decomposition=LOW_RANK).for_tensor("w")
    field = TENSOR_OPTIONS[name].name
    chosen = options if hasattr(options, field) else options.decomposition
    assert str(getattr(chosen, field)) == {"off": "False"}.get(text, text)


def test_automatic_switches_can_be_set_for_single_tensors() -> None:
    found = parse_override("w=row-skipping:auto,codebook:on")
    assert found == ("w", {"row_skipping": "auto", "codebook": True})
    with pytest.raises(InvalidOptions):
        parse_override("w=dq:auto")
