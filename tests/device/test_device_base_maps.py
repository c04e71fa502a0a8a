"""What the maps of updates say: the device decoder and nnrdec beside nnr_codec."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_support import (
    BASE,
    FED,
    FUNCTION,
    MEMORY,
    ODD_PIECES,
    HostBuild,
    Request,
    differences,
    read_folder,
    run,
)
from fuzz_support import ramp
from update_streams import OPTIONS, mapped_stream

import nnr_codec
from nnr_codec.factorization.forms import JointRight

WAYS = (MEMORY, FUNCTION, FED | ODD_PIECES)
DONE, BAD_BITSTREAM = 0, 3


def decoded(streams: list[bytes], layers: Any = "dense") -> dict[str, Any] | None:
    """What nnr_codec makes of a base and its updates; None: it refuses them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nnr_codec.NnrWarning)
            return dict(nnr_codec.decode(streams[-1], base=streams[:-1], layers=layers))
    except nnr_codec.BitstreamError:
        return None


def nnrdec(
    host: HostBuild, folder: Path, streams: list[bytes], layers: str = "dense"
) -> tuple[dict[str, Any] | None, str]:
    """What the command makes of them, and what it says."""
    folder.mkdir()
    paths = [folder / f"{number}.nnr" for number in range(len(streams))]
    for path, stream in zip(paths, streams, strict=True):
        path.write_bytes(stream)
    base = [f"--base={path}" for path in paths[:-1]]
    out = folder / "out"
    done = run(host.command, paths[-1], "-o", out, "--layers", layers, *base, text=True)
    assert done.returncode in (DONE, BAD_BITSTREAM), done.stderr
    if done.returncode == BAD_BITSTREAM:
        assert sorted(path.name for path in folder.iterdir()) == [path.name for path in paths]
        return None, done.stderr
    tensors = read_folder(out)
    assert len({path.name for path in out.iterdir()}) <= len(tensors) + 1
    return tensors, done.stderr


def same(found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and np.array_equal(found[n], wanted[n]) for n in wanted
    )


def first() -> bytes:
    """A base of integers, an empty tensor and a tie."""
    entries = {
        "extras": [
            {"name": "e", "dtype": "int32", "shape": [0, 3]},
            {"name": "t", "after": "b", "tied_to": "a"},
        ]
    }
    return mapped_stream(entries, a=ramp(4, 6), b=ramp(8, 20, modulus=9))


def cases() -> dict[str, list[bytes]]:
    base = first()

    def update(entries: Any = None, more: Any = None, **integers: Any) -> list[bytes]:
        return [base, mapped_stream(entries or {}, [base], more, **integers)]

    def fields(bits: int) -> list[bytes]:
        rule = {"dtype": "int32", "fields": bits, "shape": [8, 20]}
        coded = ramp(8, 20 * 32 // bits, modulus=3)
        return update({"tensors": {"b": rule}}, b=coded)

    tied = update(a=ramp(4, 6))
    untied = update(t=ramp(4, 6))
    return {
        **{f"fields of {bits} bits": fields(bits) for bits in (2, 4, 8, 16)},
        "low and high": update(
            {"tensors": {"b": {"dtype": "int64", "low": "l"}}}, l=ramp(8, 20), b=ramp(8, 20)
        ),
        "floats to integers": update(
            {"tensors": {"b": {"dtype": "float32", "scale": 0.5}}}, b=ramp(8, 20)
        ),
        "a tie follows": tied,
        "a tie by itself": untied,
        "a tie, and then what it was tied to": [
            *untied,
            mapped_stream({}, untied, a=ramp(4, 6, modulus=3)),
        ],
        "an empty tensor that is filled": update(e=ramp(2, 3)),
        "a new tie": update(
            {"extras": [{"name": "n", "after": "a", "tied_to": "a"}]}, a=ramp(4, 6)
        ),
        "removed": update(None, {"removed": ["b"]}, a=ramp(4, 6)),
        "removed, but tied to": update(None, {"removed": ["a"]}, b=ramp(8, 20)),
        "removed, and coded": update(None, {"removed": ["b"]}, b=ramp(8, 20)),
        "removed, not there": update(None, {"removed": ["z"]}, b=ramp(8, 20)),
        "bits of what is not there": update(None, {"xor": ["n"]}, n=ramp(2, 3)),
        "bits": update(None, {"xor": ["b"]}, b=ramp(8, 20)),
        "whole and bits": update(None, {"xor": ["b"], "whole": ["b"]}, b=ramp(8, 20)),
        "whole, of another shape": update(None, {"whole": ["b"]}, b=ramp(2, 3)),
        "another shape": update(b=ramp(20, 8)),
        "whole, not there": update(None, {"whole": ["z"]}, b=ramp(8, 20)),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_the_library(host: HostBuild, name: str) -> None:
    *base, stream = CASES[name]
    requests = [Request(stream, tuple(base), way | BASE) for way in WAYS]
    if name == "removed, but tied to":
        return  # of whom it is removed is the caller's to see
    assert differences([host.harness], requests) == []


@pytest.mark.parametrize("name", CASES)
def test_nnrdec(host: HostBuild, tmp_path: Path, name: str) -> None:
    found, said = nnrdec(host, tmp_path / "x", CASES[name])
    assert same(found, decoded(CASES[name])), said


@pytest.mark.parametrize("layers", ["dense", "factorized"])
@pytest.mark.parametrize(
    "kind", ["factors", "the weight", "a tie", "another tensor", "removed", "a whole factor"]
)
def test_weights_in_factors(host: HostBuild, tmp_path: Path, layers: str, kind: str) -> None:
    """nnrdec gives the model, or says that it cannot: never another one."""
    rng = np.random.default_rng(0)

    def drawn(rank: int = 3) -> JointRight:
        shapes = ((12, rank), (rank, 20))
        return JointRight((20, 12), tuple(rng.normal(0, 1, s).astype(np.float32) for s in shapes))

    weight, other = drawn(), drawn()
    dense = weight.to_dense()
    ties = {"t": dense} if kind == "a tie" else {}
    model = {"x": dense, "v": np.ones((6, 5), np.float32), **ties}
    base = nnr_codec.encode(model, options=OPTIONS, factorizations={"x": weight}).data or b""
    factors = {"x": other} if kind in ("factors", "a tie") else {}
    changed = {**model, "x": other.to_dense()}
    if kind == "a tie":
        changed["t"] = changed["x"]
    if kind == "another tensor":
        changed = {**model, "v": model["v"] * 3, "n": np.ones((4, 3), np.float32)}
        factors = {"x": weight}
    if kind == "removed":
        changed = {"v": model["v"]}
    if kind == "a whole factor":
        fewer = drawn(2)
        changed, factors = {**model, "x": fewer.to_dense()}, {"x": fewer}
    update = nnr_codec.encode(changed, options=OPTIONS, factorizations=factors, base=[base]).data
    streams = [base, update or b""]
    found, said = nnrdec(host, tmp_path / "x", streams, layers)
    if found is None:
        assert "nsupported" in said or "--layers factorized" in said or "unit" in said
    else:
        assert same(found, decoded(streams, layers))
    if layers == "factorized" and kind in ("factors", "another tensor"):
        assert found is not None, said


def test_layers_of_a_decomposed_model(host: HostBuild, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = ((64, 40), (40, 80))
    weight = JointRight((80, 64), tuple(rng.normal(0, 1, s).astype(np.float32) for s in shapes))
    options = replace(OPTIONS, quality_layers=3)
    result = nnr_codec.encode(
        {"x": weight.to_dense()}, options=options, factorizations={"x": weight}
    )
    streams = [result.data or b""]
    found, _ = nnrdec(host, tmp_path / "factors", streams, "factorized")
    assert found is not None
    assert same(found, decoded(streams, "factorized"))
    found, said = nnrdec(host, tmp_path / "dense", streams)
    assert found is None
    assert "--layers factorized takes its updates" in said


def test_a_base_that_is_cut(host: HostBuild, tmp_path: Path) -> None:
    """What is left of it is a base, too, and the part of a layer that is there does no harm."""
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(0, 1, (60, 50)).astype(np.float32)}
    whole = nnr_codec.encode(model, options=replace(OPTIONS, quality_layers=3)).data or b""
    sizes = nnr_codec.open(whole).info().quality_layers
    cut = whole[: sum(sizes) - 20]
    changed = {"w": model["w"] + rng.normal(0, 0.5, (60, 50)).astype(np.float32)}
    with pytest.warns(nnr_codec.NnrWarning, match="is cut"):
        update = nnr_codec.encode(changed, options=OPTIONS, base=[cut]).data or b""
    found, said = nnrdec(host, tmp_path / "x", [cut, update])
    assert "number 3 on, of 3, are left out" in said
    assert same(found, decoded([cut, update]))


def test_an_update_as_a_parent(host: HostBuild, tmp_path: Path) -> None:
    """For contexts alone it is a stream like any other, and needs no base."""
    rng = np.random.default_rng(0)
    base = nnr_codec.encode({"w": rng.normal(0, 1, (40, 30)).astype(np.float32)}).data or b""
    later = {"w": rng.normal(0, 1, (40, 30)).astype(np.float32)}
    update = nnr_codec.encode(later, base=[base]).data or b""
    profile = nnr_codec.EncodeOptions(profile=1)
    stream = nnr_codec.encode(later, options=profile, parents=[base, update]).data or b""
    for name, data in (("base", base), ("update", update), ("stream", stream)):
        (tmp_path / name).write_bytes(data)
    parents = [f"--parent={tmp_path / name}" for name in ("base", "update")]
    done = run(host.command, tmp_path / "stream", *parents, "-o", tmp_path / "out", text=True)
    assert done.returncode == DONE, done.stderr
    wanted = dict(nnr_codec.decode(stream, parents=[base, update]))
    assert same(read_folder(tmp_path / "out"), wanted)
