"""nnr-diff: what differs between streams and models, in what measure, and the exit code."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cli_support import (
    Arrays,
    Run,
    factored_model,
    factored_stream,
    random_weights,
    save,
    small_model,
)

import nnr_codec
from nnr_codec.cli import diff
from nnr_codec.cli._comparison import Difference, difference_of
from nnr_codec.model import Array


def changed_model() -> Arrays:
    """The small model with an element changed, another shape, a tensor more and one less."""
    arrays = small_model()
    arrays["first.weight"] = arrays["first.weight"].copy()
    arrays["first.weight"][0, 0] += 2
    arrays["first.bias"] = arrays["first.bias"][:-1]
    arrays["new"] = random_weights(3, 3)
    del arrays["second.bias"]
    return arrays


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return save(tmp_path / "other.npz", changed_model())


def shown(run: Run, *arguments: Any) -> tuple[int, dict[str, Any]]:
    done = run("nnr-diff", *arguments, "--json")
    return done.code, json.loads(done.out)


class TestWhatDiffers:
    def test_the_same_model_in_two_formats(self, run: Run, model: Path, tmp_path: Path) -> None:
        copy = save(tmp_path / "copy.npz", dict(reversed(small_model().items())))
        done = run("nnr-diff", model, copy)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"{model} -> {copy}: 4 tensors, 0 different; 0 % of ")
        assert len(done.out.splitlines()) == 1
        rows = run("nnr-diff", model, copy, "--verbose").out.splitlines()
        assert [row.split()[0] for row in rows[1:-1]] == list(small_model())

    def test_values_shapes_and_names(self, run: Run, model: Path, other: Path) -> None:
        code, found = shown(run, model, other)
        assert code == 4
        assert not found["equal"]
        assert (found["tensors"], found["differing"]) == (5, 2)
        assert (found["only_in_first"], found["only_in_second"]) == (1, 1)
        rows = {row["name"]: row for row in found["per_tensor"]}
        assert [row["equal"] for row in rows.values()] == [False, False, True, False, False]
        weight = rows["first.weight"]
        assert (weight["elements"], weight["changed"]) == (960, 1)
        assert weight["max_error"] == pytest.approx(2, rel=1e-6)
        assert weight["squared_error"] == pytest.approx(4, rel=1e-6)
        energy = float((small_model()["first.weight"].astype(float) ** 2).sum())
        assert weight["energy"] == pytest.approx(energy)
        assert weight["nmse"] == pytest.approx(4 / energy, rel=1e-6)
        assert rows["first.bias"]["shapes"] == [[40], [39]]
        assert "changed" not in rows["first.bias"]
        assert rows["second.bias"]["shapes"] == [[16], None]
        assert rows["new"]["dtypes"] == [None, "float32"]
        assert found["max_error"] == weight["max_error"]
        assert found["squared_error"] == weight["squared_error"]

    def test_the_table_has_rows_of_what_differs(self, run: Run, model: Path, other: Path) -> None:
        rows = run("nnr-diff", model, other).out.splitlines()
        assert [row.split()[0] for row in rows[1:-1]] == [
            *("first.weight", "first.bias", "second.bias", "new")
        ]
        assert "0.104 %" in rows[1]
        assert "40 -> 39" in rows[2]
        assert "only in A" in rows[3]
        assert "only in B" in rows[4]
        assert "2 different, 1 only in A, 1 only in B; " in rows[-1]

    def test_element_types(self, run: Run, tmp_path: Path) -> None:
        values = np.arange(8, dtype=np.float32)
        one = save(tmp_path / "a.safetensors", {"w": values})
        two = save(tmp_path / "b.safetensors", {"w": values.astype(ml_dtypes.bfloat16)})
        code, found = shown(run, one, two)
        assert code == 4
        assert found["per_tensor"][0]["dtypes"] == ["float32", "bfloat16"]
        assert found["changed"] == 0

    def test_only(self, run: Run, model: Path, other: Path) -> None:
        assert run("nnr-diff", model, other, "--only", "second.weight").code == 0
        code, found = shown(run, model, other, "--only", "first.*")
        assert (code, found["tensors"]) == (4, 2)
        refused = run("nnr-diff", model, other, "--only", "third.*")
        assert refused.code == 2
        assert "'third.*' matches no tensor" in refused.err

    def test_quiet(self, run: Run, model: Path, other: Path) -> None:
        done = run("nnr-diff", model, other, "-q")
        assert (done.code, done.out, done.err) == (4, "", "")


class TestStreams:
    def test_a_model_and_its_stream(self, run: Run, model: Path, stream: Path) -> None:
        code, found = shown(run, model, stream)
        assert code == 4
        encoded = json.loads(run("nnr-info", stream, "--json").out)
        sizes = {tensor["name"]: tensor["bytes"] for tensor in encoded["per_tensor"]}
        for row in found["per_tensor"]:
            assert row["bytes"] == [None, sizes[row["name"]]]
            assert 0 < row["nmse"] < 0.01
        assert found["bytes"][1] == stream.stat().st_size

    def test_lossless_is_equal(self, run: Run, model: Path, tmp_path: Path) -> None:
        exact = tmp_path / "exact.nnr"
        assert run("nnr-encode", model, "-o", exact, "-q", "--lossless").code == 0
        assert run("nnr-diff", model, exact).code == 0
        assert run("nnr-diff", exact, model, "--threads", "1").code == 0

    def test_two_streams_in_two_orders(self, run: Run, model: Path, tmp_path: Path) -> None:
        for order in ("size", "name"):
            options = "-o", tmp_path / order, "-q", "--order", order
            assert run("nnr-encode", model, *options).code == 0
        assert run("nnr-diff", tmp_path / "size", tmp_path / "name").code == 0

    def test_weights_in_factors(self, run: Run, tmp_path: Path) -> None:
        path, dense = tmp_path / "factored.nnr", tmp_path / "dense.npz"
        path.write_bytes(factored_stream())
        factors = tmp_path / "factors.safetensors"
        assert run("nnr-decode", path, "-o", dense, "-q").code == 0
        assert run("nnr-decode", path, "-o", factors, "-q", "--layers", "factorized").code == 0
        assert run("nnr-diff", path, dense).code == 0
        assert run("nnr-diff", factors, path).code == 0
        rows = shown(run, path, dense)[1]["per_tensor"]
        assert all(row["bytes"][0] is not None for row in rows)

    def test_folders(self, run: Run, model: Path, tmp_path: Path) -> None:
        folder, coded = tmp_path / "folder", tmp_path / "coded"
        folder.mkdir()
        shutil.copy(model, folder / "model.safetensors")
        assert run("nnr-encode", folder, "-o", f"{coded}/", "-q", "--lossless").code == 0
        assert run("nnr-diff", folder, coded).code == 0

    def test_updates_are_opened_with_their_base(
        self, run: Run, model: Path, stream: Path, other: Path, tmp_path: Path
    ) -> None:
        update = tmp_path / "update.nnr"
        options = "-o", update, "-q", "--lossless", "--base", stream
        assert run("nnr-encode", other, *options).code == 0
        assert run("nnr-diff", other, update, "--base", stream).code == 0
        assert run("nnr-diff", update, other, "--base", stream).code == 0
        assert run("nnr-diff", update, update, "--base", stream).code == 0
        code, found = shown(run, stream, update, "--base", stream)
        assert (code, found["only_in_second"]) == (4, 1)
        assert found["bytes"] == [stream.stat().st_size, update.stat().st_size]

    def test_successive_updates(
        self, run: Run, model: Path, stream: Path, other: Path, tmp_path: Path
    ) -> None:
        streams = [stream]
        for index, path in enumerate((other, model)):
            update = tmp_path / f"{index}.nnr"
            options = "-o", update, "-q", "--lossless", "--base", *streams
            assert run("nnr-encode", path, *options).code == 0
            streams.append(update)
        assert run("nnr-diff", other, streams[1], "--base", *streams[:2]).code == 0
        assert run("nnr-diff", model, streams[2], "--base", *streams[:2]).code == 0
        assert shown(run, *streams[1:], "--base", *streams[:2])[0] == 4
        done = run("nnr-diff", model, streams[2], "--base", stream)
        assert (done.code, "1.nnr: is an update of another stream" in done.err) == (3, True)

    def test_bytes_of_updates(self, run: Run, tmp_path: Path) -> None:
        base, update = tmp_path / "base.nnr", tmp_path / "update.nnr"
        model, weights = factored_model()
        base.write_bytes(nnr_codec.encode(model, factorizations=weights).data or b"")
        changed = {
            name: replace(weight, factors=(weight.factors[0] + 0.01, *weight.factors[1:]))
            for name, weight in weights.items()
        }
        made = nnr_codec.encode(model, base=[base], factorizations=changed)
        update.write_bytes(made.data or b"")
        info = json.loads(run("nnr-info", update, "--base", base, "--json").out)
        rows = shown(run, base, update, "--base", base)[1]["per_tensor"]
        sizes = {row["name"]: row["bytes"][1] for row in rows}
        assert sizes == {change["name"]: change["bytes"] for change in info["changes"]}
        assert all(sizes[name] for name in weights)
        assert not all(sizes.values())  # some are as they were

    def test_quality_is_of_the_second(self, run: Run, tmp_path: Path) -> None:
        model, layered = tmp_path / "large.npz", tmp_path / "layered.nnr"
        options = "-o", layered, "-q", "--quality-layers", "3"
        save(model, {"w": random_weights(64, 64)})
        assert run("nnr-encode", model, *options).code == 0
        errors = [
            shown(run, model, layered, "--quality", str(quality))[1]["nmse"]
            for quality in (1, 2, 3)
        ]
        assert errors == sorted(errors, reverse=True)
        assert len(set(errors)) == 3
        assert run("nnr-diff", layered, layered, "--quality", "3").code == 0
        assert run("nnr-diff", layered, layered, "--quality", "1").code == 4


class TestFailures:
    def test_an_update_without_its_base(self, run: Run, stream: Path, tmp_path: Path) -> None:
        model, update = save(tmp_path / "other.npz", changed_model()), tmp_path / "update.nnr"
        assert run("nnr-encode", model, "-o", update, "-q", "--base", stream).code == 0
        done = run("nnr-diff", model, update)
        assert (done.code, "update.nnr: is an update: name its base" in done.err) == (3, True)
        done = run("nnr-diff", model, update, "--base", model)
        assert (done.code, "looks like a model file" in done.err) == (2, True)

    def test_flags_without_effect(self, run: Run, model: Path, stream: Path) -> None:
        done = run("nnr-diff", model, stream, "--base", stream)
        assert (done.code, "neither is an update" in done.err) == (2, True)
        done = run("nnr-diff", stream, model, "--quality", "1")
        assert (done.code, "is no bitstream, and has no quality layers" in done.err) == (2, True)
        done = run("nnr-diff", model, stream, "--quality", "2")
        assert (done.code, "has no quality layers" in done.err) == (2, True)

    def test_a_missing_file(self, run: Run, model: Path, tmp_path: Path) -> None:
        done = run("nnr-diff", model, tmp_path / "missing")
        assert done.code == 1
        assert "missing" in done.err

    def test_a_damaged_stream(self, run: Run, model: Path, stream: Path, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.nnr"
        damaged.write_bytes(stream.read_bytes()[:-3])
        done = run("nnr-diff", model, damaged)
        assert done.code == 3
        assert "damaged.nnr" in done.err

    def test_limits(self, run: Run, stream: Path) -> None:
        assert run("nnr-diff", stream, stream, "--limit", "max_elements=5").code == 3
        assert run("nnr-diff", stream, stream).code == 0


@pytest.mark.parametrize(
    ("changed", "text"), [(0, "0 %"), (1, "0.01 %"), (9999, "99.9 %"), (10000, "100 %")]
)
def test_the_share_is_rounded_to_neither_end(changed: int, text: str) -> None:
    assert diff._share(Difference(10000, changed)) == text


class TestMeasures:
    @pytest.mark.parametrize(
        ("first", "second", "changed", "largest"),
        [
            ([1.0, math.nan, -0.0], [1.0, math.nan, 0.0], 0, 0),
            ([math.inf, -math.inf], [math.inf, -math.inf], 0, 0),
            ([1.0, 2.0], [1.0, math.nan], 1, math.inf),
            ([math.inf, 2.0], [-math.inf, 2.5], 2, math.inf),
            ([], [], 0, 0),
        ],
    )
    def test_of_floats(
        self, first: list[float], second: list[float], changed: int, largest: float
    ) -> None:
        found = difference_of(np.array(first, np.float32), np.array(second, np.float32))
        assert (found.changed, found.largest_error) == (changed, largest)
        assert found.squared_error == (math.inf if largest else 0)
        assert found.elements == len(first)

    def test_of_integers(self) -> None:
        one = np.array([2**62, 5, 6])
        found = difference_of(one, one + np.array([1, 0, -2]))
        assert found.changed == 2  # though binary64 cannot tell the first
        assert found.largest_error == 2
        flags = np.array([True, False])
        assert difference_of(flags, ~flags) == Difference(2, 2, 2, 1, 1)

    def test_of_many_elements(self) -> None:
        rng = np.random.default_rng(0)
        one: Array = rng.normal(size=(700, 300))
        other = np.where(rng.random(one.shape) < 0.25, one + 1, one)
        found = difference_of(one, other)
        assert found.changed == (one != other).sum()
        assert found.squared_error == pytest.approx(found.changed)
        assert found.nmse == pytest.approx(found.changed / (one**2).sum())

    def test_without_energy(self) -> None:
        zeros = np.zeros(3, np.float32)
        assert difference_of(zeros, zeros).nmse == 0
        assert difference_of(zeros, zeros + 1).nmse == math.inf


def test_infinite_errors_are_null_in_json(run: Run, tmp_path: Path) -> None:
    one = save(tmp_path / "a.npz", {"w": np.zeros(4, np.float32)})
    two = save(tmp_path / "b.npz", {"w": np.full(4, np.inf, np.float32)})
    found = shown(run, one, two)[1]
    assert (found["nmse"], found["max_error"], found["changed"]) == (None, None, 4)
    assert "inf" in run("nnr-diff", one, two).out


def test_one_tensor_of_each_is_decoded_at_a_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "m.nnr"
    nnr_codec.encode(small_model(), path)
    read: list[str] = []
    usual = nnr_codec.NnrStream.__getitem__
    monkeypatch.setattr(
        nnr_codec.NnrStream, "__getitem__", lambda self, n: (read.append(n), usual(self, n))[1]
    )
    assert run("nnr-diff", path, path).code == 0
    assert read == [name for name in small_model() for _ in range(2)]
