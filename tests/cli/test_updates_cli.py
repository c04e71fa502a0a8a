"""Updates of a base on the command line: --base, --base-model, --residual."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import Arrays, Run, load, random_weights, save

BAD_BITSTREAM, USAGE, FAILURE = 3, 2, 1


def first_model() -> Arrays:
    return {
        "conv.weight": random_weights(16, 8, 3, 3),
        "conv.bias": random_weights(16, seed=1),
        "gone": np.arange(4, dtype=np.int32),
    }


def second_model() -> Arrays:
    model = first_model()
    model["conv.weight"] = model["conv.weight"] + random_weights(16, 8, 3, 3, seed=2, scale=0.02)
    del model["gone"]
    return {**model, "new": random_weights(4, 4, seed=3)}


@pytest.fixture
def files(run: Run, tmp_path: Path) -> Path:
    """A folder with a base, base.nnr, an update of it, update.nnr, and the models of both."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save(old, first_model())
    save(new, second_model())
    base, update = tmp_path / "base.nnr", tmp_path / "update.nnr"
    assert run("nnr-encode", old, "-o", base, "-q").code == 0
    encoded = run("nnr-encode", new, "--base", base, "-o", update, "--verify", "--json")
    assert encoded.code == 0
    rows = {row["name"]: row for row in json.loads(encoded.out)["per_tensor"]}
    assert rows["conv.weight"]["is_difference"]
    assert not rows["new"]["is_difference"]
    return tmp_path


def test_an_update_gives_the_whole_model(run: Run, files: Path) -> None:
    update, base, out = files / "update.nnr", files / "base.nnr", files / "out.safetensors"
    assert run("nnr-decode", update, "--base", base, "-o", out).code == 0
    found, expected = load(out), second_model()
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 0.01
    third = files / "third.nnr"
    assert run("nnr-encode", out, "--base", base, update, "-o", third, "-q").code == 0
    assert run("nnr-decode", third, "--base", base, update, "-o", out, "-f").code == 0
    digest = run("nnr-info", third, "--base", base, update, "--digest").out.strip()
    verified = run("nnr-decode", third, "--base", base, update, "-o", out, "-f", "--verify", digest)
    assert verified.code == 0


def test_a_pipe_is_an_update_too(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    base, out = files / "base.nnr", files / "out.npz"
    with (files / "update.nnr").open("rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        assert run("nnr-decode", "-", "--base", base, "-o", out).code == 0
    assert set(load(out)) == set(second_model())


@pytest.mark.parametrize(
    "damage", ["missing", "another", "truncated", "flipped", "absent", "order"]
)
def test_a_wrong_base_is_refused_before_anything_is_written(
    damage: str, run: Run, files: Path
) -> None:
    base, update, out = files / "base.nnr", files / "update.nnr", files / "out.safetensors"
    data = bytearray(base.read_bytes())
    arguments: list[Path] = [base]
    if damage == "missing":
        arguments = []
    elif damage == "another":
        arguments = [files / "other.nnr"]
        run("nnr-encode", files / "new.safetensors", "-o", arguments[0], "-q")
    elif damage == "truncated":
        base.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        base.write_bytes(data)
    elif damage == "order":
        arguments = [update, base]
    else:
        base.unlink()
    flags = ["--base", *arguments] if arguments else []
    outcome = run("nnr-decode", update, *flags, "-o", out)
    assert outcome.code == (FAILURE if damage == "absent" else BAD_BITSTREAM)
    assert "update" in outcome.err or "base.nnr" in outcome.err
    assert not out.exists()
    assert run("nnr-info", update, *flags, "--digest").code == outcome.code


def test_info_shows_what_changes(run: Run, files: Path) -> None:
    update, base = files / "update.nnr", files / "base.nnr"
    shown = run("nnr-info", update, "--base", base)
    assert shown.code == 0
    kinds = {line.split()[0]: line.split()[2] for line in shown.out.splitlines()[1:-2]}
    assert kinds == {"conv.weight": "changed", "new": "added", "gone": "removed"}
    assert "1 tensor unchanged" in shown.out
    data = json.loads(run("nnr-info", update, "--base", base, "--json").out)
    changes = {change["name"]: change["kind"] for change in data["changes"]}
    assert changes == {**kinds, "conv.bias": "unchanged"}
    assert "--base shows" in run("nnr-info", update).out  # which needs none for its headers


def test_options_that_do_not_go_together(run: Run, files: Path) -> None:
    new, base, update = files / "new.safetensors", files / "base.nnr", files / "update.nnr"
    encode = ["nnr-encode", new, "--dry-run"]
    for arguments in (
        [*encode, "--base", base, "--parent", base],
        [*encode, "--base", "-"],
        [*encode, "--base-model", new],
        [*encode, "--residual", "r.safetensors"],
        ["nnr-encode", new, "-o", files / "u", "--base", base, "--residual", "r.npz"],
        [*encode, "--base", base, "--decompose", "lr", "--rank", "0.5"],
        ["nnr-decode", update, "-o", files / "x.npz", "--base", base, "--parent", base],
        ["nnr-decode", update, "-o", base, "-f", "--base", base],
    ):
        outcome = run(*arguments)
        assert outcome.code == USAGE, arguments
        assert any(word in outcome.err for word in ("base", "output", "residual"))


def test_a_residual_goes_from_update_to_update(run: Run, files: Path) -> None:
    new, residual = files / "new.safetensors", files / "residual.safetensors"
    streams = [files / "base.nnr"]
    for number in range(2):
        out = files / f"{number}.nnr"
        flags = ["--base", *streams, "--residual", residual, "-o", out, "-q"]
        before = residual.read_bytes() if residual.exists() else b""
        assert run("nnr-encode", new, "--dry-run", "-q", *flags[:-3]).code == 0
        assert (residual.read_bytes() if residual.exists() else b"") == before
        assert run("nnr-encode", new, *flags).code == 0
        assert residual.read_bytes() != before
        streams.append(out)
    again = ["--base", *streams[:2], "--residual", residual, "-o", files / "x.nnr"]
    outcome = run("nnr-encode", new, *again)
    assert outcome.code == FAILURE
    assert "residual.safetensors" in outcome.err
    assert not (files / "x.nnr").exists()


def test_the_old_model_tells_what_did_not_change(run: Run, files: Path) -> None:
    old, new, base = files / "old.safetensors", files / "new.safetensors", files / "base.nnr"
    flags = ["--qp", "-50", "--base", base, "-o", files / "x.nnr", "-f", "--json"]
    sizes = [
        json.loads(run("nnr-encode", model, *flags, *more).out)["bytes"]
        for model, more in ((old, []), (old, ["--base-model", old]), (new, ["--base-model", old]))
    ]
    assert sizes[1] < sizes[0]
    assert sizes[1] < sizes[2]
