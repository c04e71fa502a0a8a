"""ONNX: the tensors of a model's graph, and a copy of the model with other values in them.

onnx is imported only when such a file is read or written.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nnr_codec.checkpoints.reading import file_error, open_regular, package_error, parsing
from nnr_codec.errors import InvalidModel
from nnr_codec.model import DTYPE_NAMES, Array, Model, Parameter, dtype_of

# onnx.proto, TensorProto.DataType, whose other types (text, complex, less than a byte) stay there.
_DTYPES = {name.upper().replace("_", ""): name for name in DTYPE_NAMES}
_DTYPES |= {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT8E8M0": "float8_e8m0fnu"}
_FLOATS = ("float", "bfloat")
_MAX_BYTES = 2**31 - 1  # of a protobuf message
_VALUE_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def read(path: str) -> Model:
    """Open the ONNX model `path`; its tensors are those of :func:`graph_tensors`.

    Values outside of the file (external data) are read when needed, by onnx's own loader, from the
    folder of the file and those below it; all others are in memory. Tensors of types that cannot be
    coded, and sparse ones, are part of the graph and not read; the model's notes name them.

    Raises:
        InvalidModel: onnx is not installed; the file is damaged or has no tensors to code; or
            values lie outside of the folder.
    """
    onnx = _onnx(path)
    model = _load(onnx, path)
    found = _codable(onnx, path, model)
    if not found.tensors:
        raise file_error(path, "holds no weights: no tensors that can be coded")
    parameters = [_parameter(onnx, path, found.tensors, name) for name in found.tensors]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Model(
        parameters,
        metadata=metadata,
        source=path,
        files=[path, *dict.fromkeys(_locations(onnx, path, found.tensors.values()))],
        notes=found.notes,
        on_close=found.tensors.clear,
    )


def _onnx(path: str) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise package_error(path, "onnx", error) from error
    return onnx


def _load(onnx: Any, path: str) -> Any:
    """Return the ModelProto in `path`, whose external data are checked but not yet loaded."""
    with parsing(path), open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise file_error(path, "is larger than an ONNX file can be (2 GiB)")
        model = onnx.load_model_from_string(file.read())
        # Any bytes that happen to be fields of protobuf, and none at all, are a message.
        if not model.HasField("graph") or model.ir_version < 1:
            raise file_error(path, "damaged file: no ONNX model with a graph")
    return model


@dataclass(frozen=True, slots=True)
class _Codable:
    """The tensors of a graph that can be coded, by name, and what is to be said of others."""

    tensors: dict[str, Any]
    notes: list[str]


def _codable(onnx: Any, path: str, model: Any) -> _Codable:
    """Return the tensors of a model that can be coded, whose places are checked."""
    found = _Codable({}, [])
    names = Counter(tensor.name for tensor in model.graph.initializer)
    for name, count in names.most_common(1):
        if count > 1:
            raise file_error(path, "damaged file: two initializers have this name", name)
    for name, tensor in graph_tensors(onnx, model):
        _check_location(onnx, path, name, tensor)
        if min(tensor.dims, default=0) < 0:
            raise file_error(path, "damaged file: a negative dimension", name)
        if _type_name(onnx, tensor) in _DTYPES:
            found.tensors[name] = tensor
        else:
            reason = f"is of type {_type_name(onnx, tensor)}, which cannot be coded"
            found.notes.append(f"{name!r} stays in the graph alone: it {reason}")
    for name in itertools.chain.from_iterable(map(_sparse_of, (model.graph, *model.functions))):
        found.notes.append(f"{name!r} stays in the graph alone: it is sparse")
    return found


def _sparse_of(graph: Any) -> Iterator[str]:
    """Yield the names of the sparse tensors of a graph, or a function, and of its subgraphs."""
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield sparse.values.name
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield next(iter(node.output), "")
            for subgraph in _subgraphs(attribute):
                yield from _sparse_of(subgraph)


def graph_tensors(onnx: Any, model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a model that are weights, with names that differ, in a fixed order.

    These are the initializers of the graph and of its subgraphs (the bodies of If, Loop, Scan), and
    the values of Constant nodes there and in functions that are floats of one dimension or more, or
    integers of two or more: what is less are sizes, axes and scalars of the computation. A name
    that occurs again, as in two branches, gets a number.
    """
    counts: dict[str, int] = {}
    nodes = (node for function in model.functions for node in function.node)
    for name, tensor in itertools.chain(_of_graph(onnx, model.graph), _of_nodes(onnx, nodes)):
        counts[name] = counts.get(name, 0) + 1
        unique = name
        while counts[name] > 1 and (unique := f"{name}.{counts[name]}") in counts:
            counts[name] += 1
        counts.setdefault(unique, 1)
        yield unique, tensor


def _of_graph(onnx: Any, graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    yield from _of_nodes(onnx, graph.node)


def _of_nodes(onnx: Any, nodes: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for node in nodes:
        is_constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        for attribute in node.attribute:
            if is_constant and attribute.name == "value" and attribute.HasField("t"):
                floats = _DTYPES.get(_type_name(onnx, attribute.t), "float").startswith(_FLOATS)
                if len(attribute.t.dims) >= (1 if floats else 2):
                    yield next(iter(node.output), ""), attribute.t
            for graph in _subgraphs(attribute):
                yield from _of_graph(onnx, graph)


def _subgraphs(attribute: Any) -> Iterable[Any]:
    return [attribute.g] if attribute.HasField("g") else attribute.graphs


def _locations(onnx: Any, path: str, tensors: Iterable[Any]) -> Iterator[str]:
    """Yield the paths of the files that tensors' values lie in."""
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            stated = {entry.key: entry.value for entry in tensor.external_data}
            yield os.path.join(os.path.dirname(path), stated.get("location", ""))


def _type_name(onnx: Any, tensor: Any) -> str:
    types = onnx.TensorProto.DataType
    known = tensor.data_type in types.values()
    return str(types.Name(tensor.data_type)) if known else f"unknown ({tensor.data_type})"


def _check_location(onnx: Any, path: str, name: str, tensor: Any) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    stated = {entry.key: entry.value for entry in tensor.external_data}
    location = stated.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not parts[0] or ":" in parts[0] or ".." in parts or "\0" in location:
        reason = f"its external data {location!r} are not in the folder of the file"
        raise file_error(path, reason, name)


def _parameter(onnx: Any, path: str, tensors: dict[str, Any], name: str) -> Parameter:
    def load() -> Array:
        with parsing(path, name):
            if name not in tensors:
                raise file_error(path, "the model is closed", name)
            proto = onnx.TensorProto()
            proto.CopyFrom(tensors[name])  # loading external data would keep them in memory
            folder = os.path.dirname(os.path.abspath(path))
            return np.asarray(onnx.numpy_helper.to_array(proto, folder))

    tensor = tensors[name]
    dtype = dtype_of(_DTYPES[_type_name(onnx, tensor)])
    return Parameter(name, tuple(tensor.dims), dtype, load)


def write(
    path: str,
    file: BinaryIO,
    parameters: Sequence[Parameter],
    *,
    metadata: Mapping[str, str],
    graph: str | os.PathLike[str],
) -> None:
    """Write the ONNX model `graph` to `file` with other values in its tensors.

    All else stays as it is, except that external data become part of the file. `metadata` are
    added to the model's metadata_props, or replace those of the same key.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`; InvalidModel without onnx, or when the
        names, shapes or dtypes of `parameters` are not those that `read` finds in the graph.
    """
    source = os.fspath(graph)
    onnx = _onnx(source)
    model = _load(onnx, source)
    tensors = _codable(onnx, source, model).tensors
    _check_agreement(onnx, source, tensors, parameters)
    with parsing(source):
        folder = os.path.dirname(os.path.abspath(source))
        onnx.external_data_helper.load_external_data_for_model(model, folder)
    for parameter in parameters:
        _replace(onnx, tensors[parameter.name], parameter.read())
    kept = [entry for entry in model.metadata_props if entry.key not in metadata]
    pairs = {entry.key: entry.value for entry in kept} | dict(metadata)
    onnx.helper.set_model_props(model, pairs)
    if model.ByteSize() > _MAX_BYTES:
        raise InvalidModel(path, "is larger than an ONNX file can be (2 GiB)")
    # Maps of protobuf have no order of their own.
    file.write(model.SerializeToString(deterministic=True))


def _check_agreement(
    onnx: Any, source: str, tensors: dict[str, Any], parameters: Sequence[Parameter]
) -> None:
    expected = Model(_parameter(onnx, source, tensors, name) for name in tensors)
    given = {parameter.name for parameter in parameters}
    for name in expected:
        if name not in given:
            reason = "is a tensor of the graph, but not among those that are decoded"
            raise file_error(source, reason, name)
    for parameter in parameters:
        if parameter.name not in expected:
            raise file_error(source, "is no tensor of the graph", parameter.name)
        known = expected[parameter.name]
        if (parameter.shape, parameter.dtype) != (known.shape, known.dtype):
            reason = f"the graph has {known.dtype} of shape {known.shape}, not"
            reason += f" {parameter.dtype} of shape {parameter.shape}"
            raise file_error(source, reason, parameter.name)


def _replace(onnx: Any, tensor: Any, values: Array) -> None:
    for field in (*_VALUE_FIELDS, "external_data", "data_location"):
        tensor.ClearField(field)
    stored = values.byteswap() if sys.byteorder == "big" else values
    tensor.raw_data = stored.tobytes()
