"""What an update is made against: the base, what it was made of, and the residual."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from ...decoding.source import BASE_AND_PARENTS
from ...decoding.updates.base_model import BaseModel
from ...errors import InvalidOptions
from ...factorization.files import with_weights
from ...model import Model, Parameter
from ...options import EncodeOptions
from ...support.digest import digest
from .residual import opened_residual


@dataclass(frozen=True, slots=True)
class UpdateSource:
    """What an update is made against.

    Attributes:
        base: what decoders have.
        digest: that of its model.
        old: the tensors that the base was made of, by name, as far as they are known.
        residuals: what earlier updates did not carry, by name.
        residual_file: a new file, where what this one does not carry is written; None: nowhere.
    """

    base: BaseModel
    digest: str
    old: Mapping[str, Parameter] = field(default_factory=dict)
    residuals: Mapping[str, Parameter] = field(default_factory=dict)
    residual_file: BinaryIO | None = None

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that stand for all of it."""
        known = (self.old, self.residuals)
        digests = [digest((n, p.read()) for n, p in tensors.items()) for tensors in known]
        parts = [self.base.streams[-1].digest, self.digest, *digests]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@contextmanager
def update_source(
    base: BaseModel | None,
    old: Model | None,
    residual: str | os.PathLike[str] | None,
    residual_file: BinaryIO | None,
    executor: Executor | None,
) -> Iterator[UpdateSource | None]:
    """Give what an update is made against, of which all is open while the block runs.

    Args:
        base: what decoders have, the whole of which is decoded; None: there is none, and nothing is
            given.
        old: the model that the base was made of, if it is known.
        residual: the file of what earlier updates did not carry, if there is to be one.
        residual_file: the new one.
        executor: decodes side by side.

    Raises:
        BitstreamError: the base is damaged.
        InvalidModel: the file of the residual is damaged, or another one's.
    """
    if base is None:
        yield None
        return
    tensors = {} if old is None else {**old, **with_weights(old)[0]}
    with opened_residual(residual, base) as residuals:
        yield UpdateSource(base, base.digest(executor), tensors, residuals, residual_file)


def update_options(
    options: EncodeOptions,
    base: Sequence[Any],
    *,
    parents: Sequence[Any],
    calibration: object,
    base_model: object,
    residual: object,
) -> EncodeOptions:
    """Return the options with which a stream is encoded if there is a base.

    Factors of an update are those of the base, each an ordinary tensor. The arguments are those of
    ``nnr_codec.encode``.

    Raises:
        InvalidOptions: they contradict each other.
    """
    if not base:
        for name, value in (("base_model", base_model), ("residual", residual)):
            if value is not None:
                raise InvalidOptions(name, "belongs to a base: give that, too")
        return options
    if parents:
        raise InvalidOptions("base", BASE_AND_PARENTS)
    if options.decomposes:
        reason = "does not go with base: factors are those of the base, if the model is given so"
        raise InvalidOptions("decompose", reason)
    if calibration is not None and options.max_kl is None:
        reason = "does not go with base, but to measure max_kl: differences are coded without it"
        raise InvalidOptions("calibration", reason)
    if options.tune:
        raise InvalidOptions("tune", "does not go with base: vectors are those of the model")
    return replace(options, decomposition=replace(options.decomposition, carriage="factors"))
