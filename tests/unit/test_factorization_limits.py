"""Limits of decoding, for small streams whose factors ask for much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hostile_support import READERS, nnr_factors, stream_with, tensors, weight

import nnr_codec
from nnr_codec import DecodeLimits, InvalidBitstream, LimitExceeded


class TestLimits:
    """Small streams that ask for much."""

    @pytest.mark.parametrize("read", READERS)
    def test_a_huge_weight_of_small_factors(self, read: Any) -> None:
        """A gigabyte of elements for two factors that take no bytes; nothing is allocated."""
        size = 2**16
        arrays = {"g": np.zeros((size, 1), np.float32), "h": np.zeros((1, size), np.float32)}
        data = stream_with(weight(shape=[size, size]), arrays)
        assert len(data) < 1000
        with pytest.raises(LimitExceeded, match="max_elements_per_tensor"):
            read(data)
        limits = DecodeLimits(max_elements_per_tensor=2**32)
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=limits)

    @pytest.mark.parametrize("read", READERS)
    def test_weights_count_with_their_ties(self, read: Any) -> None:
        extras = [{"name": f"t{i}", "after": "w", "tied_to": "w"} for i in range(9)]
        data = stream_with({**weight(), "extras": extras})
        elements = sum(array.size for array in tensors().values()) + 10 * 24
        read(data, limits=DecodeLimits(max_elements=elements))
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=DecodeLimits(max_elements=elements - 1))

    @pytest.mark.parametrize("read", READERS)
    def test_many_weights_of_one_factor(self, read: Any) -> None:
        """Each of them has a factor of its own, and counts."""
        count = 50
        arrays = {"v": np.zeros((1, 1000), np.float32)}
        arrays |= {f"u{i}": np.zeros((1, 1), np.float32) for i in range(count)}
        entries = {
            f"w{i}": {"form": "joint_right", "shape": [1000, 1], "factors": [f"u{i}", "v"]}
            for i in range(count)
        }
        data = stream_with({"factorizations": entries}, arrays)
        elements = 1000 + count + 1000 * count
        read(data, limits=DecodeLimits(max_elements=elements))
        with pytest.raises(LimitExceeded, match="max_elements"):
            read(data, limits=DecodeLimits(max_elements=elements - 1))
        entries["again"] = {**entries["w49"]}
        data = stream_with({"factorizations": entries}, arrays)
        with pytest.raises(InvalidBitstream, match="ends"):
            read(data)

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_a_product(self, read: Any) -> None:
        data = stream_with(weight())
        read(data, limits=DecodeLimits(max_product_operations=48))
        with pytest.raises(LimitExceeded, match="max_product_operations"):
            read(data, limits=DecodeLimits(max_product_operations=47))

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_all_products(self, read: Any) -> None:
        """A shared factor is multiplied for each of its weights, however small they are."""
        arrays = {"v": np.zeros((8, 8), np.float32)}
        arrays |= {f"u{i}": np.zeros((1, 8), np.float32) for i in range(5)}
        entries = {
            f"w{i}": {"form": "joint_right", "shape": [8, 1], "factors": [f"u{i}", "v"]}
            for i in range(5)
        }
        data = stream_with({"factorizations": entries}, arrays)
        each = {"max_product_operations": 64}
        read(data, limits=DecodeLimits(**each, max_all_product_operations=5 * 64))
        with pytest.raises(LimitExceeded, match="max_all_product_operations"):
            read(data, limits=DecodeLimits(**each, max_all_product_operations=5 * 64 - 1))

    @pytest.mark.parametrize("read", READERS)
    def test_the_work_of_blocks(self, read: Any) -> None:
        weights = {name: nnr_factors((4, 2), (2, 6)) for name in "ab"}
        dense = {name: weight.to_dense() for name, weight in weights.items()}
        data = nnr_codec.encode(dense, factorizations=weights).data
        read(data, limits=DecodeLimits(max_product_operations=48, max_all_product_operations=96))
        with pytest.raises(LimitExceeded, match="max_product_operations"):
            read(data, limits=DecodeLimits(max_product_operations=47))
        with pytest.raises(LimitExceeded, match="max_all_product_operations"):
            read(data, limits=DecodeLimits(max_all_product_operations=95))

    def test_ranks_beyond_the_weight(self) -> None:
        """A core that is larger than its weight would make larger intermediates."""
        arrays = {
            "core": np.zeros((1, 4000, 1), np.float32),
            "t": np.zeros((4000, 1), np.float32),
            "s": np.zeros((1, 4000), np.float32),
        }
        entry = {"form": "tucker2", "shape": [4000, 1, 1], "factors": ["core", "t", "s"]}
        with pytest.raises(InvalidBitstream, match="ranks"):
            nnr_codec.decode(stream_with({"factorizations": {"w": entry}}, arrays))

    def test_memory_of_a_product(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from nnr_codec.factorization.forms import LowRank

        def fail(self: Any) -> Any:
            raise MemoryError

        monkeypatch.setattr(LowRank, "to_dense", fail)
        with pytest.raises(LimitExceeded, match="memory"):
            nnr_codec.decode(stream_with(weight()))
