"""Lossless coding of real models, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import nnr_codec
from nnr_codec.checkpoints import open_checkpoint

DEFAULT = Path(__file__).parents[3] / "shared"
FOLDER = Path(os.environ.get("NNR_SHARED", DEFAULT)) / "data" / "models"
MOST_BYTES = {
    # Without loss, 85 % of binary32 are left of ordinary weights: exponents are predictable.
    "resnet8_mlperftiny_cifar10": 268_500,
    "mobilenetv1_025_vww96": 764_000,
    "resnet20_cifar10": 926_000,
    "resnet56_cifar10": 2_926_000,
    "vdsr_set5": 2_263_000,
    # Clustered: the entropy of the indices is 496.6 kB, the tables hold 26.6 kB of values.
    "squeezenet1_0_imagenet_deepcomp": 542_000,
    "minilm_l6_v2_encoder": 37_200_000,
}


@pytest.mark.parametrize("name", MOST_BYTES)
def test_every_bit_of_a_real_model(name: str, tmp_path: Path) -> None:
    source = FOLDER / f"{name}.safetensors"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    stream = tmp_path / "m.nnr"
    nnr_codec.encode(source, stream, nnr_codec.EncodeOptions(lossless=True))
    assert stream.stat().st_size < MOST_BYTES[name]
    decoded = nnr_codec.load_file(stream)
    with open_checkpoint(source) as model:
        assert list(decoded) == model.names()
        for tensor, values in model.arrays():
            assert decoded[tensor].dtype == values.dtype
            assert np.array_equal(decoded[tensor].view(np.uint32), values.view(np.uint32))
