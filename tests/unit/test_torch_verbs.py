"""Tensors of torch and modules, encoded and decoded: nnr_codec.torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nnr_codec  # noqa: E402
import nnr_codec.torch as codec  # noqa: E402

EXACT = nnr_codec.EncodeOptions(lossless=True)
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
]


def bits(tensor: Any) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist() if tensor.numel() else []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0, 2)])
def test_every_type_comes_back(dtype: Any, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(dtype)
    back = codec.decode(codec.encode({"t": tensor}, EXACT))["t"]
    assert isinstance(back, torch.Tensor)
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert bits(back.reshape(-1)) == bits(tensor.reshape(-1))


def test_modules_and_state_dicts() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)).bfloat16()
    data = codec.encode(module, EXACT)
    assert nnr_codec.encode(module, options=EXACT).data == data
    assert nnr_codec.encode(module.state_dict(), options=EXACT).data == data
    back = codec.decode(data)
    assert list(back) == list(module.state_dict())
    module.load_state_dict(back)


def test_views_gradients_and_arrays() -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    state = {"t": base.T, "p": torch.nn.Parameter(torch.ones(2)), "a": np.arange(3)}
    back = codec.decode(codec.encode(state, EXACT))
    assert back["t"].tolist() == base.T.tolist()
    assert back["p"].tolist() == [1, 1]
    assert back["a"].tolist() == [0, 1, 2]


def test_ties_are_coded_once_and_come_back_as_one() -> None:
    tensor = torch.randn(64, 64)
    once = codec.encode({"a": tensor})
    twice = codec.encode({"a": tensor, "b": tensor})
    assert len(twice) < len(once) + 200
    back = codec.decode(twice)
    assert back["a"].data_ptr() == back["b"].data_ptr()


def test_tensors_can_be_changed(recwarn: Any) -> None:
    back = codec.decode(codec.encode({"a": torch.ones(3, 3), "b": torch.zeros(0, 2)}))
    for tensor in back.values():
        tensor.add_(1)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "m.nnr"
    codec.save_file({"a": torch.ones(3)}, path, EXACT)
    codec.save_file({"a": torch.zeros(3)}, path, EXACT)
    assert codec.load_file(path)["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "without values"),
        (3, "int"),
        ([1.0], "list"),
    ],
)
def test_refusals(value: Any, reason: str) -> None:
    with pytest.raises(nnr_codec.InvalidModel, match=f"'w'.*{reason}"):
        codec.encode({"w": value})


def test_extra_state_is_named() -> None:
    class Odd(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"version": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.warns(nnr_codec.NnrWarning, match="_extra_state"):
        data = codec.encode(Odd(3, 3))
    assert list(codec.decode(data)) == ["weight", "bias"]


def test_results_are_printed_without_their_bytes() -> None:
    result = nnr_codec.encode({"w": np.ones((9, 9), np.float32)})
    assert "EncodeReport" in repr(result)
    assert "\\x" not in repr(result)
