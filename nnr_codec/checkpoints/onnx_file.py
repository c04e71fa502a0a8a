"""ONNX: the initializers of a model's graph, and a copy of the model with other values in them.

onnx is imported only when such a file is read or written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from nnr_codec.checkpoints.reading import file_error, open_regular, package_error, parsing
from nnr_codec.errors import InvalidModel
from nnr_codec.model import DTYPE_NAMES, Array, Model, Parameter, dtype_of

# onnx.proto, TensorProto.DataType, whose other types (text, complex, less than a byte) are refused.
_DTYPES = {name.upper().replace("_", ""): name for name in DTYPE_NAMES}
_DTYPES |= {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT8E8M0": "float8_e8m0fnu"}
_MAX_BYTES = 2**31 - 1  # of a protobuf message
_VALUE_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def read(path: str) -> Model:
    """Open the ONNX model `path`; its tensors are the graph's initializers, in their order.

    Initializers of subgraphs (the bodies of If, Loop, Scan) and values in Constant nodes are part
    of the graph and not read. Values outside of the file (external data) are read when needed,
    by onnx's own loader, from the folder of the file and those below it; all others are in memory.

    Raises:
        InvalidModel: onnx is not installed; the file is damaged; or an initializer is sparse, is
            of a type that cannot be coded, or lies outside of the folder.
    """
    onnx = _onnx(path)
    model = _load(onnx, path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    parameters = [_parameter(onnx, path, tensors, t) for t in model.graph.initializer]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Model(parameters, metadata=metadata, source=path, on_close=tensors.clear)


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
    for sparse in model.graph.sparse_initializer:
        raise file_error(path, "tensors that are sparse are not supported", sparse.values.name)
    for tensor in model.graph.initializer:
        _check_location(onnx, path, tensor)
    return model


def _check_location(onnx: Any, path: str, tensor: Any) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    stated = {entry.key: entry.value for entry in tensor.external_data}
    location = stated.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not parts[0] or ":" in parts[0] or ".." in parts or "\0" in location:
        reason = f"its external data {location!r} are not in the folder of the file"
        raise file_error(path, reason, tensor.name)


def _parameter(onnx: Any, path: str, tensors: dict[str, Any], tensor: Any) -> Parameter:
    name = tensor.name
    types = onnx.TensorProto.DataType
    stated = types.Name(tensor.data_type) if tensor.data_type in types.values() else "unknown"
    if stated not in _DTYPES:
        raise file_error(path, f"tensors of type {stated} are not supported", name)
    if min(tensor.dims, default=0) < 0:
        raise file_error(path, "damaged file: a negative dimension", name)

    def load() -> Array:
        with parsing(path, name):
            if name not in tensors:
                raise file_error(path, "the model is closed", name)
            proto = onnx.TensorProto()
            proto.CopyFrom(tensors[name])  # loading external data would keep them in memory
            folder = os.path.dirname(os.path.abspath(path))
            return np.asarray(onnx.numpy_helper.to_array(proto, folder))

    return Parameter(name, tuple(tensor.dims), dtype_of(_DTYPES[stated]), load)


def write(
    path: str,
    file: BinaryIO,
    parameters: Sequence[Parameter],
    *,
    metadata: Mapping[str, str],
    graph: str | os.PathLike[str],
) -> None:
    """Write the ONNX model `graph` to `file` with the values of its initializers replaced.

    All else stays as it is, except that external data become part of the file. `metadata` are
    added to the model's metadata_props, or replace those of the same key.

    Raises: as :func:`nnr_codec.checkpoints.save_checkpoint`; InvalidModel without onnx, or when the
        names, shapes or dtypes of `parameters` are not those of the initializers.
    """
    source = os.fspath(graph)
    onnx = _onnx(source)
    model = _load(onnx, source)
    _check_agreement(onnx, source, model, parameters)
    with parsing(source):  # what else is external, such as the values of Constant nodes
        folder = os.path.dirname(os.path.abspath(source))
        onnx.external_data_helper.load_external_data_for_model(model, folder)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for parameter in parameters:
        _replace(onnx, tensors[parameter.name], parameter.read())
    kept = [entry for entry in model.metadata_props if entry.key not in metadata]
    pairs = {entry.key: entry.value for entry in kept} | dict(metadata)
    onnx.helper.set_model_props(model, pairs)
    if model.ByteSize() > _MAX_BYTES:
        raise InvalidModel(path, "is larger than an ONNX file can be (2 GiB)")
    # Maps of protobuf have no order of their own.
    file.write(model.SerializeToString(deterministic=True))


def _check_agreement(onnx: Any, source: str, model: Any, parameters: Sequence[Parameter]) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    expected = Model(_parameter(onnx, source, tensors, t) for t in model.graph.initializer)
    given = {parameter.name for parameter in parameters}
    for name in expected:
        if name not in given:
            reason = "is an initializer of the graph, but not among the tensors"
            raise file_error(source, reason, name)
    for parameter in parameters:
        if parameter.name not in expected:
            raise file_error(source, "is not an initializer of the graph", parameter.name)
        initializer = expected[parameter.name]
        if (parameter.shape, parameter.dtype) != (initializer.shape, initializer.dtype):
            reason = f"the graph has {initializer.dtype} of shape {initializer.shape}, not"
            reason += f" {parameter.dtype} of shape {parameter.shape}"
            raise file_error(source, reason, parameter.name)


def _replace(onnx: Any, tensor: Any, values: Array) -> None:
    for field in (*_VALUE_FIELDS, "external_data", "data_location"):
        tensor.ClearField(field)
    stored = values.byteswap() if sys.byteorder == "big" else values
    tensor.raw_data = stored.tobytes()
