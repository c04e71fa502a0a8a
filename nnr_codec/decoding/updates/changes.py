"""What an update changes: which tensors it adds to, replaces, brings and removes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..stream_description import describe_stream
from .base_model import BaseModel
from .composition import ModelTensor

Change = Literal["changed", "replaced", "added", "removed", "unchanged"]


class TensorChange(NamedTuple):
    """What an update does to one tensor.

    Attributes:
        name: of the tensor, as dense weights are called.
        shape: in the new model; of one that is removed, in the old one.
        kind: "changed": something is added to it, or to its factors; "replaced": it comes as a
            whole; "added"; "removed"; or "unchanged".
        bytes: of its data units in the update; of a factor with the first weight made of it.
    """

    name: str
    shape: tuple[int, ...]
    kind: Change
    bytes: int


def changes_of(model: BaseModel) -> list[TensorChange]:
    """Return what the last stream of a model does to each tensor, in order; what is removed last.

    Raises:
        BitstreamError: its headers are damaged.
        ValueError: there is one stream alone.
    """
    if model.before is None or model.update is None:
        raise ValueError("a model of one stream alone has no changes")
    known, made = model.before.composition.tensors, model.composition.tensors
    rows = describe_stream(model.streams[-1].units).tensors
    sizes = {row.name: row.bytes for row in rows}  # each counts once, with its first weight
    changes = []
    for name, tensor in made.items():
        size = sum(sizes.pop(piece, 0) for piece in _pieces(name, tensor))
        changes.append(TensorChange(name, tensor.shape, _kind(model, name, tensor), size))
    gone = (name for name in known if name not in made)
    return changes + [TensorChange(name, known[name].shape, "removed", 0) for name in gone]


def _kind(model: BaseModel, name: str, tensor: ModelTensor) -> Change:
    known = model.before.composition.tensors.get(name) if model.before else None
    if known is None:
        return "added"
    if tensor.tied_to is not None and known.tied_to == tensor.tied_to:
        name = tensor.tied_to
        tensor = model.composition.tensors[name]
        return _kind(model, name, tensor)
    if (known.role, known.entry) != (tensor.role, tensor.entry):
        return "replaced"
    entry = model.streams[-1].base
    whole = entry.whole if entry is not None else ()
    coded = model.update.pieces if model.update is not None else {}
    touched = [piece for piece in _pieces(name, tensor) if piece in coded]
    if tensor.role == "empty":
        return "unchanged" if known == tensor else "replaced"
    if not touched:
        return "unchanged"
    return "replaced" if all(piece in whole for piece in touched) else "changed"


def _pieces(name: str, tensor: ModelTensor) -> tuple[str, ...]:
    """Return the names of what a tensor is made of."""
    if tensor.tied_to is not None:
        return ()
    return (name,) if tensor.entry is None else tensor.entry.factors
