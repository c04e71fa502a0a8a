"""MiniLM-L6: sentence embeddings, by retrieval among pairs of sentences that follow each other.

Data: `models/minilm_l6_v2_encoder.safetensors`, and `datasets/minilm_pairs.npz` with token numbers
and the rows of the word table that they need; pairs of even index calibrate, the odd ones measure.
A sample is a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sample_files import arrays, halves
from torch import nn
from torch.nn import functional

from nnr_codec.experiments.batches import Batch, Batches
from nnr_codec.experiments.datasets.images import required_files
from nnr_codec.experiments.measures.metrics import Retrieval
from nnr_codec.experiments.subject import Subject

FILES = ("models/minilm_l6_v2_encoder.safetensors", "datasets/minilm_pairs.npz")
WIDTH = 384
INNER = 1536
HEADS = 12
LAYERS = 6
POSITIONS = 512
EPSILON = 1e-12  # of BERT's layer norm
PAIRS = 12  # in a batch


class AddedAndNormalized(nn.Module):
    """A linear layer whose output is added to a second input, and layer norm."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, inner: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(words + self.dense(inner))


class Layer(nn.Module):
    """A layer of BERT, with its names."""

    def __init__(self) -> None:
        super().__init__()
        projections = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict(projections), "output": AddedAndNormalized(WIDTH)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = AddedAndNormalized(INNER)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sentences, length, _ = words.shape
        query, key, value = (
            projection(words).view(sentences, length, HEADS, -1).transpose(1, 2)
            for projection in self.get_submodule("attention.self").children()
        )
        visible = mask[:, None, None]
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        joined = seen.transpose(1, 2).reshape(words.shape)
        words = self.attention["output"](joined, words)
        inner = functional.gelu(self.intermediate["dense"](words))
        return self.output(inner, words)


class Embeddings(nn.Module):
    """Positions and token types, added to the words' own vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(words.shape[1])
        types = torch.zeros_like(positions)  # a single sentence
        words = words + self.position_embeddings(positions) + self.token_type_embeddings(types)
        return self.LayerNorm(words)


class MiniLM(nn.Module):
    """Six layers of BERT, and the mean over the words, of length 1.

    Takes the words' vectors, (pairs, 2, words, 384), and which of them are there, bool
    (pairs, 2, words); gives (pairs, 2, 384).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})  # in the file, not in use

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        present = mask.flatten(0, 1)
        words = self.embeddings(vectors.flatten(0, 1))
        for layer in self.get_submodule("encoder.layer").children():
            words = layer(words, present)
        weights = present[:, :, None].to(words.dtype)
        mean = (words * weights).sum(1) / weights.sum(1)
        return functional.normalize(mean, dim=1).view(*mask.shape[:2], -1)


def samples(path: Path) -> Batches:
    """Return pairs of sentences as the network takes them.

    The file holds all first sentences, and then their partners in the same order.
    """
    count = len(arrays(path)["ids"]) // 2

    def load(chosen: Sequence[int]) -> Batch:
        members = arrays(path)
        rows = np.asarray(chosen)[:, np.newaxis] + np.array([0, count])
        slots = np.searchsorted(members["vocab_ids"], members["ids"][rows])
        mask = np.arange(slots.shape[2]) < members["lengths"][rows][:, :, np.newaxis]
        vectors = torch.from_numpy(members["vocab_rows"][slots])
        return (vectors, torch.from_numpy(mask)), None

    return Batches(load, range(count), PAIRS)


def minilm_pairs(data: Path | None) -> Subject:
    """Return MiniLM's encoder, measured on 100 pairs; raises what `required_files` raises."""
    name = "minilm_pairs"
    checkpoint, pairs = required_files(name, data, *FILES)
    calibration, measured = halves(samples(pairs))
    return Subject(name, MiniLM, checkpoint, measured, Retrieval(), calibration)
