"""PyTorch's files: state dicts, ties, and the refusal of what would execute code."""

from __future__ import annotations

import argparse
import collections
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_support import (
    EXTENSION_DTYPES,
    assert_refused,
    assert_same,
    hide_package,
    loaded,
    some,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnr_codec.checkpoints import open_checkpoint, save_checkpoint
from nnr_codec.errors import InvalidModel, InvalidOptions
from nnr_codec.model import dtype_of

torch = pytest.importorskip("torch")

DTYPES = ["bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
one = torch.ones(1)


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)
    return path


class TestReading:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.npz", "m.onnx"])
    def test_format_is_told_by_content(self, tmp_path: Path, zipped: bool, name: str) -> None:
        state = {name: torch.from_numpy(array) for name, array in some().items()}
        path = saved(tmp_path, state, _use_new_zipfile_serialization=zipped)
        path = path.rename(tmp_path / name)
        assert list(loaded(path)) == list(some())
        assert_same(loaded(path), some())

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("protocol", [2, 3])
    def test_protocols_of_legacy_files(self, tmp_path: Path, protocol: int) -> None:
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        path = saved(tmp_path, {"w": one}, **options)
        assert_same(loaded(path), {"w": np.ones(1, np.float32)})

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("protocol", [4, 5])
    def test_protocols_that_torch_does_not_read(self, tmp_path: Path, protocol: int) -> None:
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        assert_refused(saved(tmp_path, {"w": one}, **options), "damaged")

    @pytest.mark.parametrize(
        "content",
        [
            {"w": one},
            {"w": one, "epoch": 3, "args": {"lr": 0.1}, 7: "x"},
            collections.OrderedDict(w=one),
            {"state_dict": {"w": one}, "epoch": 3},
            {"model_state_dict": {"w": one}, "optimizer": {"state": {0: {"m": one}}}},
            {"model": {"w": one}, "ema": {"w": one, "v": one}},
            {"net": {"w": one}, "best": one},
            {"state_dict": {"w": one}, "model": {"v": one}},
            {"state_dict": 3, "model": {"w": one}},
            {"generator": {"w": one, "step": 3}, "epoch": 3},
            {"step": torch.tensor(5), "weights": {"w": one}},
            {"params": {"w": one}, "rng_state": torch.zeros(16, dtype=torch.uint8)},
            {"model": {"encoder": {"w": one}}},
            {"a": {"state_dict": {"w": one}, "optimizer": {"w": one, "v": one}}},
            {"w": one, "optimizer_state": {"m": one}, "lr_scheduler": {"m": one}},
        ],
    )
    def test_the_state_dict_is_found(self, tmp_path: Path, content: Any) -> None:
        assert_same(loaded(saved(tmp_path, content)), {"w": np.ones(1, np.float32)})

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (one, "holds a Tensor"),
            ([one], "holds a list"),
            ({"a": {"w": one}, "b": {"w": one}}, "several.*'a', 'b'.*--key"),
            ({"a": (same := {"w": one}), "b": same}, "several.*'a', 'b'"),
            ({"a": {"w": one}, "v": one}, r"several.*'\.', 'a'"),
            ({"model": {"a": {"w": one}, "b": {"w": one}}}, r"several.*'model\.a', 'model\.b'"),
            ({"a": 1}, "no tensors.*'a'"),
            ({3: one}, "'3'.*int, not text"),
            ({"w": torch.zeros(2, dtype=torch.complex64)}, "'w'.*complex"),
            ({"w": torch.eye(2).to_sparse()}, "'w'.*sparse"),
            ({"w": torch.zeros(2, device="meta")}, "'w'.*(without values|type)"),
        ],
    )
    def test_refusals(self, tmp_path: Path, content: Any, reason: str) -> None:
        assert_refused(saved(tmp_path, content), reason)

    def test_what_is_left_out_is_named(self, tmp_path: Path) -> None:
        content = {"step": one, "model": {"part": {"w": one, "scale": 4.6}, "extra": [one]}}
        with open_checkpoint(saved(tmp_path, content)) as model:
            assert model.names() == ["w"]
            (note,) = model.notes
        assert "'step', 'model.extra', 'model.part.scale'" in note
        with open_checkpoint(saved(tmp_path, {"w": one})) as model:
            assert model.notes == ()

    def test_many_things_left_out(self, tmp_path: Path) -> None:
        content = {"w": one, **{f"x{i}": i for i in range(100)}}
        with open_checkpoint(saved(tmp_path, content)) as model:
            assert "'x4' and 95 more" in model.notes[0]

    @pytest.mark.parametrize(
        ("key", "name"),
        [("a", "of a"), ("b", "of b"), ("b.c", "dotted"), ("b.d", "of d"), (".", "outer")],
    )
    def test_keys(self, tmp_path: Path, key: str, name: str) -> None:
        content = {
            **{"a": {"of a": one}, "b": {"of b": one, "d": {"of d": one}}},
            **{"b.c": {"dotted": one}, "outer": one},
        }
        with open_checkpoint(saved(tmp_path, content), key=key) as model:
            assert model.names() == [name]

    @pytest.mark.parametrize(
        ("key", "reason"),
        [("zz", "nothing at 'zz'.*'a', 'n'"), ("a", "keys 'a.b'"), ("n", "int"), ("", "nothing")],
    )
    def test_keys_of_nothing(self, tmp_path: Path, key: str, reason: str) -> None:
        path = saved(tmp_path, {"a": {"b": {"w": one}}, "n": 3})
        with pytest.raises(InvalidOptions, match=reason) as caught:
            open_checkpoint(path, key=key)
        assert caught.value.option == "key"

    def test_dicts_that_hold_themselves(self, tmp_path: Path) -> None:
        content: dict[str, Any] = {"x": {"w": one}}
        content |= dict.fromkeys("abc", content)
        content["x"]["x"] = content
        assert_same(loaded(saved(tmp_path, content)), {"w": np.ones(1, np.float32)})

    def test_what_checkpoints_hold_beside_tensors(self, tmp_path: Path) -> None:
        beside = {
            "numbers": [np.float64(0.5), np.int64(3), np.bool_(True), np.str_("x"), np.float16(1)],
            "array": np.arange(3.0),
            "options": argparse.Namespace(path=Path("x"), lr=0.1),
        }
        assert_same(
            loaded(saved(tmp_path, {"model": {"w": one}, **beside})), {"w": np.ones(1, "f4")}
        )

    @pytest.mark.filterwarnings("ignore")
    def test_quantized_tensors(self, tmp_path: Path) -> None:
        if not hasattr(torch, "quantize_per_tensor"):
            pytest.skip("this torch has no quantized tensors")
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        assert_refused(saved(tmp_path, {"w": quantized}), "'w'.*quantized")

    def test_a_module(self, tmp_path: Path) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        found = loaded(saved(tmp_path, module.state_dict()))
        assert list(found) == list(module.state_dict())
        assert found["1.num_batches_tracked"].shape == ()
        assert_same(found, {name: t.numpy() for name, t in module.state_dict().items()})

    def test_views_and_gradients(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        state = {
            "t": base.T,
            "row": base[1],
            "expanded": one.expand(2, 3),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
        found = loaded(saved(tmp_path, state))
        assert_same(found, {name: t.detach().numpy() for name, t in state.items()})
        assert all(array.flags.c_contiguous for array in found.values())

    def test_closed_model_cannot_be_read(self, tmp_path: Path) -> None:
        with open_checkpoint(saved(tmp_path, {"w": one})) as model:
            pass
        with pytest.raises(InvalidModel, match=r"'w'.*closed"):
            model["w"].read()

    def test_ties(self, tmp_path: Path) -> None:
        base = torch.arange(4.0).reshape(2, 2)
        state = {
            "first": base,
            "same": base,
            "too": base.view(2, 2),
            "transposed": base.T,
            "flat": base.view(4),
            "row": base[1],
            "equal": base.clone(),
            "none": base[:0],
            "none too": base[:0],
        }
        with open_checkpoint(saved(tmp_path, state)) as model:
            ties = {name: p.tied_to for name, p in model.items() if p.tied_to}
            assert ties == {"same": "first", "too": "first"}
            assert model["too"].read().tolist() == [[0, 1], [2, 3]]

    def test_compressed_archives(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"w": torch.arange(50)})
        other = tmp_path / "compressed.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert_same(loaded(other), {"w": np.arange(50)})


class Attack:
    """What, unpickled, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class TestSafety:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused_and_not_executed(self, tmp_path: Path, zipped: bool) -> None:
        content = {"w": one, "x": Attack(tmp_path / "attacked")}
        path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InvalidModel, match="execute code") as caught:
            loaded(path)
        assert "mkdir" in str(caught.value)
        assert "weights_only" not in str(caught.value)
        assert not (tmp_path / "attacked").exists()

    def test_whole_modules(self, tmp_path: Path) -> None:
        reason = r"Linear.*execute code.*save the weights alone.*state_dict"
        assert_refused(saved(tmp_path, torch.nn.Linear(1, 1)), reason)

    @pytest.mark.filterwarnings("ignore")
    def test_programs(self, tmp_path: Path) -> None:
        torch.jit.script(torch.nn.Linear(3, 3)).save(str(tmp_path / "model.pt"))
        assert_refused(tmp_path / "model.pt", "TorchScript.*state_dict")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_truncations(self, tmp_path: Path, zipped: bool) -> None:
        content = {"w": torch.ones(64)}
        path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in range(0, len(whole), 7):
            path.write_bytes(whole[:size])
            assert_refused(path, r"damaged|neither|execute code")  # of a name cut short

    def test_without_torch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path, {"w": one})
        hide_package(monkeypatch, "torch")
        with pytest.raises(InvalidModel, match=r"pip install nnr-codec\[torch\]"):
            open_checkpoint(path)
        with pytest.raises(InvalidModel, match=r"pip install nnr-codec\[torch\]"):
            save_checkpoint(tmp_path / "new.pt", some())
        assert os.listdir(tmp_path) == ["model.pt"]

    def test_versions_that_execute_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = saved(tmp_path, {"w": one})
        monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
        assert_refused(path, r"torch 2\.6 or later, not 2\.5\.1")


class TestWriting:
    @given(
        tensors=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
            hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0)),
            max_size=5,
        )
    )
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
    )
    def test_round_trip(self, tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        save_checkpoint(path, tensors, overwrite=True)
        assert list(loaded(path)) == list(tensors)
        assert_same(loaded(path), tensors)
        plain = torch.load(path, weights_only=True)
        assert_same({name: tensor.numpy() for name, tensor in plain.items()}, tensors)

    @pytest.mark.parametrize("dtype", EXTENSION_DTYPES)
    def test_extension_types(self, tmp_path: Path, dtype: str) -> None:
        extension = dtype_of(dtype)
        bits = 8 * extension.itemsize
        values = np.arange(2**bits, dtype=f"u{bits // 8}").view(extension).reshape(16, -1)
        tensors = {"all": values, "scalar": np.array(values[3, 4], extension), "none": values[:0]}
        path = tmp_path / "model.pt"
        save_checkpoint(path, tensors)
        assert_same(loaded(path), tensors)
        tensor = torch.load(path, weights_only=True)["all"]
        assert tensor.dtype == getattr(torch, dtype)
        found, expected = tensor.float().numpy(), values.astype("f4")
        assert np.array_equal(found, expected, equal_nan=True)

    def test_ties_come_back(self, tmp_path: Path) -> None:
        base = torch.arange(4096.0).reshape(64, 64)
        source = saved(tmp_path, {"a": base, "b": base, "c": base.clone()})
        path = tmp_path / "new.pth"
        with open_checkpoint(source) as model:
            save_checkpoint(path, model)
        state = torch.load(path, weights_only=True)
        assert state["a"].data_ptr() == state["b"].data_ptr() != state["c"].data_ptr()
        assert path.stat().st_size < 2 * base.nbytes + 4000
        with open_checkpoint(path) as model:
            assert [p.tied_to for p in model.values()] == [None, "a", None]

    def test_ties_of_renamed_and_missing_parameters(self, tmp_path: Path) -> None:
        base = torch.ones(3)
        path = tmp_path / "new.pt"
        with open_checkpoint(saved(tmp_path, {"a": base, "b": base})) as model:
            for tensors, ties in [
                ({"x": model["a"], "y": model["b"]}, [None, "x"]),
                ({"y": model["b"], "x": model["a"]}, [None, None]),
                ({"y": model["b"]}, [None]),
                ({"": model["a"], "y": model["b"], "z": one.numpy()}, [None, "", None]),
            ]:
                save_checkpoint(path, tensors, overwrite=True)
                with open_checkpoint(path) as found:
                    assert [p.tied_to for p in found.values()] == ties
                    assert list(found) == list(tensors)
        with open_checkpoint(tmp_path / "model.pt") as model:
            save_checkpoint(path, list(model.values())[1:], overwrite=True)
        assert_same(loaded(path), {"b": np.ones(3, np.float32)})

    def test_metadata_leave_the_state_dict_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        metadata = {"nnr_model_map": "{}", "": "ß\n"}
        module = torch.nn.Linear(2, 1)
        tensors = {name: t.numpy() for name, t in module.state_dict().items()}
        save_checkpoint(path, tensors, metadata=metadata)
        with open_checkpoint(path) as model:
            assert model.metadata == metadata
            assert model.names() == list(tensors)
        torch.nn.Linear(2, 1).load_state_dict(torch.load(path, weights_only=True))

    def test_output_may_replace_its_own_input(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"w": torch.arange(5)})
        with open_checkpoint(path) as model:
            save_checkpoint(path, model, overwrite=True)
            assert model["w"].read().tolist() == [0, 1, 2, 3, 4]
        assert loaded(path)["w"].tolist() == [0, 1, 2, 3, 4]

    def test_same_bytes_every_time(self, tmp_path: Path) -> None:
        for name in ("a.pt", "b.pt"):
            save_checkpoint(tmp_path / name, some(), metadata={"a": "b"})
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
