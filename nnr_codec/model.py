"""A model: named parameters in a fixed order, each of them read only when it is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from nnr_codec.errors import InvalidModel

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Role = Literal["weight", "nonweight"]

# The element types that can be coded, by numpy's canonical name. The name and not `dtype.str` or
# `dtype.kind` is the key: those of bfloat16 (`<V2`, `V`) are the ones of untyped bytes.
_FLOAT8 = [f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]
_EXTENSION_DTYPES = {n: np.dtype(getattr(ml_dtypes, n)) for n in ("bfloat16", *_FLOAT8)}
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_DTYPES: dict[str, np.dtype[Any]] = {
    **{n: np.dtype(n) for n in ("bool", "float16", "float32", "float64", *_INTEGERS)},
    **_EXTENSION_DTYPES,
}
DTYPE_NAMES = tuple(_DTYPES)
"""Of the element types that can be coded."""


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the element type called `name`, such as `"float32"` or `"bfloat16"`.

    Raises:
        KeyError: there is no such element type, or it cannot be coded.
    """
    return _DTYPES[name]


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return `dtype.name`, which numpy composes at each access, slowly."""
    return dtype.name


def is_extension(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is bfloat16 or a float8 type, which numpy has from `ml_dtypes` alone."""
    return dtype_name(dtype) in _EXTENSION_DTYPES


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype`, which can be coded, is a floating-point type."""
    return dtype.kind == "f" or is_extension(dtype)


def is_signed_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a floating-point type with a sign bit and a zero.

    All are but float8_e8m0fnu, which holds positive powers of two alone: nothing to quantize.
    """
    return is_float(dtype) and dtype_name(dtype) != "float8_e8m0fnu"


def supported_dtype(name: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the element type `dtype` of the parameter `name` in native byte order.

    Raises:
        InvalidModel: parameters of this element type cannot be coded (object, structured,
            complex, text, dates, extended precision, and types of less than a byte).
    """
    dtype = np.dtype(dtype)
    if dtype_name(dtype) not in _DTYPES:
        reason = "structured" if dtype.names is not None else dtype.name
        raise InvalidModel(name, f"parameters of dtype {reason} are not supported")
    return dtype.newbyteorder("=")


def _itself(values: Array) -> Array:
    return values


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a model: what is known of it beforehand, and how to get its values.

    Attributes:
        name: name of the tensor, any text.
        shape: its dimensions, outermost first; `()` for a scalar.
        dtype: its element type, in native byte order.
        load: returns the values; called by every :meth:`read`.
        tied_to: name of the earlier parameter of the model that is the very same piece of memory,
            or None. A tied parameter is read like any other, but it need not be coded again.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array] = field(repr=False, compare=False)
    tied_to: str | None = None

    @classmethod
    def from_array(cls, name: str, array: Array) -> Parameter:
        """Make a parameter of an array in memory, which is shared and not copied.

        Raises:
            InvalidModel: `array` is not a numpy array, or its element type cannot be coded.
        """
        if not isinstance(array, np.ndarray | np.generic):
            raise InvalidModel(name, f"is a {type(array).__name__}, not a numpy array")
        values = np.asarray(array)
        dtype = supported_dtype(name, values.dtype)
        return cls(name, values.shape, dtype, partial(_itself, values))

    def read(self) -> Array:
        """Return the values: `shape`, `dtype`, row-major; not to be changed by the caller.

        Raises:
            InvalidModel: the values cannot be read, or they are not what `shape` and `dtype` say.
        """
        values = np.asarray(self.load())
        dtype = values.dtype.newbyteorder("=")
        if values.shape != self.shape or dtype != self.dtype:
            reason = f"declared as {self.dtype} of shape {self.shape}, "
            reason += f"but its values are {dtype} of shape {values.shape}"
            raise InvalidModel(self.name, reason)
        return np.asarray(values, dtype=self.dtype, order="C")

    def loaded(self) -> Parameter:
        """Return the parameter with its values in memory, so that other processes can have it.

        Raises:
            InvalidModel: as of :meth:`read`.
        """
        return replace(self, load=partial(_itself, self.read()))

    @property
    def role(self) -> Role:
        """`"weight"` for two and more dimensions, else `"nonweight"` (biases, norms, scalings)."""
        return "weight" if len(self.shape) >= 2 else "nonweight"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.size * self.dtype.itemsize


class Model(Mapping[str, Parameter]):
    """The parameters of a model by name, in the order of the file they came from.

    A mapping: iteration gives the names, `values()` the parameters. Holds no values; they are read
    from the open file by :meth:`Parameter.read`, from any thread, until the model is closed.

    Attributes:
        metadata: the file's text entries, such as `{"format": "pt"}`.
        source: path of the file, or None.
        files: paths of all files that the model is read from.
        notes: sentences that tell what of the file is not in the model.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        metadata: Mapping[str, str] | None = None,
        source: str | None = None,
        files: Iterable[str] = (),
        notes: Iterable[str] = (),
        on_close: Callable[[], object] | None = None,
    ) -> None:
        """Collect `parameters` in order; `on_close` is called once, by the first :meth:`close`.

        Raises:
            InvalidModel: two parameters have the same name, or one is tied to what is not an
                earlier parameter of the same shape and dtype.
        """
        self._parameters: dict[str, Parameter] = {}
        self._on_close = on_close
        self.metadata: dict[str, str] = dict(metadata or {})
        self.source = source
        self.files = tuple(files) or (() if source is None else (source,))
        self.notes = tuple(notes)
        for parameter in parameters:
            if parameter.name in self._parameters:
                raise InvalidModel(parameter.name, "two parameters have this name")
            self._check_tie(parameter)
            self._parameters[parameter.name] = parameter

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Model:
        """Make a model of arrays in memory, in the order of `arrays`; they are not copied.

        Raises:
            InvalidModel: a value is not a numpy array, or its element type cannot be coded.
        """
        return cls(Parameter.from_array(name, array) for name, array in arrays.items())

    def with_parameters(
        self, parameters: Iterable[Parameter], metadata: Mapping[str, str] | None = None
    ) -> Model:
        """Return a model of other parameters, or other entries, from the same files.

        This one stays open as long as they are read. Raises what the constructor raises.
        """
        return Model(
            parameters,
            metadata=self.metadata if metadata is None else metadata,
            source=self.source,
            files=self.files,
            notes=self.notes,
        )

    def _check_tie(self, parameter: Parameter) -> None:
        if parameter.tied_to is None:
            return
        first = self._parameters.get(parameter.tied_to)
        if first is None:
            reason = f"is tied to {parameter.tied_to!r}, which is not an earlier parameter"
            raise InvalidModel(parameter.name, reason)
        if (first.shape, first.dtype) != (parameter.shape, parameter.dtype):
            reason = f"is tied to {first.name!r}, which has another shape or dtype"
            raise InvalidModel(parameter.name, reason)

    def names(self) -> list[str]:
        """Return the names in order."""
        return list(self._parameters)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Read one parameter after the other and yield (name, values)."""
        for name, parameter in self._parameters.items():
            yield name, parameter.read()

    def close(self) -> None:
        """Close the file behind the model; the parameters cannot be read any more."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
