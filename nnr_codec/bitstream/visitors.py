"""Visitors of the syntax: one reads a record, one writes it, one lists its elements.

Each structure is a function over a :class:`Visitor` in :mod:`.syntax`, so that reading, writing
and listing cannot disagree. An element is visited by its name, a descriptor kind and the kind's
argument: ``"u"``, ``"i"``, ``"ue"``, ``"ie"``, ``"flt"`` with bits or order; ``"st"`` and
``"rest"`` (bytes up to the unit's end) with the name of the length limit; ``"octets"`` (bytes,
not necessarily aligned) with bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from ..errors import LimitExceeded, UnsupportedFeature
from ..options import DecodeLimits
from .bits import BitReader, BitWriter


class Element(NamedTuple):
    """One listed syntax element: its name, its descriptor such as ``"u(5)"``, and its value."""

    name: str
    descriptor: str
    value: Any


class Visitor:
    """What the syntax functions call; as it stands, it takes values from the record."""

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        """Visit one element; ``value`` is the record's, the answer what holds from here on."""
        raise NotImplementedError

    def align(self) -> None:
        """Visit the alignment pattern."""
        raise NotImplementedError

    def field(self, record: Any, name: str, kind: str, size: Any, element: str = "") -> None:
        """Visit the element that is the record's attribute ``name``."""
        self.code(element or name, kind, size, getattr(record, name))

    def u(self, record: Any, name: str, bits: int) -> None:
        """Visit an unsigned attribute."""
        self.field(record, name, "u", bits)

    def ue(self, record: Any, name: str, order: int) -> None:
        """Visit an Exp-Golomb attribute."""
        self.field(record, name, "ue", order)

    def flt(self, record: Any, name: str) -> None:
        """Visit a binary32 attribute."""
        self.field(record, name, "flt", 32)

    def st(self, record: Any, name: str, limit: str = "max_name_bytes") -> None:
        """Visit a string attribute."""
        self.field(record, name, "st", limit)

    def choice(
        self, record: Any, name: str, bits: int, codes: type[IntEnum], element: str = ""
    ) -> None:
        """Visit an unsigned attribute that is one of ``codes``."""
        self.field(record, name, "u", bits, element)

    def zero(self, element: str, bits: int) -> None:
        """Visit reserved bits, which are 0."""
        value = self.code(element, "u", bits, 0)
        self.check(value == 0, element, value, "reserved, must be 0")

    def present(self, element: str, present: bool) -> bool:
        """Visit a flag that says whether something follows."""
        return bool(self.code(element, "u", 1, int(present)))

    def count(self, element: str, kind: str, size: int, length: int, offset: int = 0) -> int:
        """Visit a count that is coded as length - offset; the answer is the length, 0 or more."""
        length = int(self.code(element, kind, size, length - offset)) + offset
        self.check(length >= 0, element, length - offset, "too small")
        return length

    def values(
        self, record: Any, name: str, count: int, kind: str, size: Any, element: str = ""
    ) -> None:
        """Visit a list of ``count`` numbers or strings."""
        items = getattr(record, name)
        self.check(len(items) == count, name, len(items), f"must have {count} entries")
        for item in items:
            self.code(element or name, kind, size, item)

    def child(self, record: Any, name: str, factory: type) -> Any:
        """The record in attribute ``name``."""
        return getattr(record, name)

    def each(self, record: Any, name: str, count: int, factory: type) -> Iterator[Any]:
        """The ``count`` records in the list ``name``, one by one."""
        items = getattr(record, name)
        self.check(len(items) == count, name, len(items), f"must have {count} entries")
        return iter(items)

    def element(self, items: list[Any], index: int, factory: type) -> Any:
        """The record at ``index`` of a list that is visited piece by piece."""
        self.check(index < len(items), factory.__name__, len(items), f"{index + 1} needed")
        return items[index]

    def check(self, condition: bool, element: str, value: object, reason: str) -> None:
        """Refuse the element's value unless the condition holds."""

    def limit(self, name: str, value: int, allowed: int | None = None) -> None:
        """Refuse a value above the decoder's limit of that name (or above ``allowed``)."""

    def fits(self, element: str, count: int, bits_each: int) -> None:
        """Refuse a count of codes that the bits left cannot hold."""

    def unsupported(self, element: str, value: object, reason: str) -> None:
        """Refuse what the format has and this package does not implement."""
        raise UnsupportedFeature(element, value, reason)


class ReadVisitor(Visitor):
    """Fills a fresh record from a :class:`BitReader`; refuses what is invalid or too much.

    Flags and the usual numbers go straight to the reader: there are twenty for each tensor.
    """

    def __init__(self, reader: BitReader, limits: DecodeLimits) -> None:
        self.reader = reader
        self.limits = limits

    def _read(self, kind: str, size: Any) -> Any:
        if kind == "st":
            return self.reader.st(getattr(self.limits, size), size)
        if kind == "rest":
            count = self.reader.bits_left // 8
            self.limit(size, count)
            return self.reader.raw(count)
        return getattr(self.reader, kind)(size)  # called like the descriptors

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        return self._read(kind, size)

    def u(self, record: Any, name: str, bits: int) -> None:
        setattr(record, name, self.reader.u(bits))

    def ue(self, record: Any, name: str, order: int) -> None:
        setattr(record, name, self.reader.ue(order))

    def present(self, element: str, present: bool) -> bool:
        return self.reader.u(1) == 1

    def align(self) -> None:
        self.reader.align()

    def field(self, record: Any, name: str, kind: str, size: Any, element: str = "") -> None:
        setattr(record, name, self._read(kind, size))

    def choice(
        self, record: Any, name: str, bits: int, codes: type[IntEnum], element: str = ""
    ) -> None:
        """Read one of ``codes``; any other value is reserved."""
        value = self.reader.u(bits)
        try:
            setattr(record, name, codes(value))
        except ValueError:
            self.check(False, element or name, value, "reserved value")

    def values(
        self, record: Any, name: str, count: int, kind: str, size: Any, element: str = ""
    ) -> None:
        setattr(record, name, [self._read(kind, size) for _ in range(count)])

    def child(self, record: Any, name: str, factory: type) -> Any:
        """Set the attribute to a fresh record."""
        item = factory()
        setattr(record, name, item)
        return item

    def each(self, record: Any, name: str, count: int, factory: type) -> Iterator[Any]:
        """Append ``count`` fresh records, each when it is needed."""
        items: list[Any] = []
        setattr(record, name, items)
        for _ in range(count):
            items.append(factory())
            yield items[-1]

    def element(self, items: list[Any], index: int, factory: type) -> Any:
        items.append(factory())
        return items[-1]

    def check(self, condition: bool, element: str, value: object, reason: str) -> None:
        """Raise InvalidBitstream, with the element's name, unless the condition holds."""
        if not condition:
            raise self.reader.invalid(f"{element} = {value}: {reason}")

    def limit(self, name: str, value: int, allowed: int | None = None) -> None:
        allowed = getattr(self.limits, name) if allowed is None else allowed
        if value > allowed:
            raise LimitExceeded(name, value, allowed)

    def fits(self, element: str, count: int, bits_each: int) -> None:
        """Raise TruncatedBitstream where ``count`` codes cannot be in the bits left."""
        if count * bits_each > self.reader.bits_left:
            left = self.reader.bits_left
            raise self.reader.truncated(f"{element} = {count}: only {left} bits left in the unit")


class WriteVisitor(Visitor):
    """Writes a record with a :class:`BitWriter`; a record that cannot be written is a
    ``ValueError`` (``InvalidModel`` for a name that is no proper string)."""

    def __init__(self, writer: BitWriter) -> None:
        self._write: dict[str, Callable[[Any, Any], None]] = {
            "u": writer.u,
            "i": writer.i,
            "ue": writer.ue,
            "ie": writer.ie,
            "flt": writer.flt,
            "octets": writer.octets,
            "st": lambda limit, text: writer.st(text),
            "rest": lambda limit, data: writer.raw(data),
        }
        self._writer = writer

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        try:
            self._write[kind](size, value)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{element} = {value!r}: {error}") from error
        return value

    def align(self) -> None:
        self._writer.align()

    def choice(
        self, record: Any, name: str, bits: int, codes: type[IntEnum], element: str = ""
    ) -> None:
        value = getattr(record, name)
        self.code(element or name, "u", bits, codes(value).value)

    def check(self, condition: bool, element: str, value: object, reason: str) -> None:
        if not condition:
            raise ValueError(f"{element} = {value!r}: {reason}")


class ListVisitor(Visitor):
    """Collects a record's elements, in the order of the bitstream."""

    def __init__(self) -> None:
        self.elements: list[Element] = []

    def code(self, element: str, kind: str, size: Any, value: Any) -> Any:
        if kind in ("st", "rest"):
            descriptor = "st(v)" if kind == "st" else "bytes"
        else:
            descriptor = f"{'u' if kind == 'octets' else kind}({size})"
        self.elements.append(Element(element, descriptor, value))
        return value

    def align(self) -> None:
        self.elements.append(Element("align", "align", None))
