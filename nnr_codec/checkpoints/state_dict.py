"""Which dict of an unpickled checkpoint is the state dict of the model, and what lies beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nnr_codec.checkpoints.reading import file_error, left_out_notes
from nnr_codec.errors import InvalidOptions

OUTERMOST = "."
"""As a key, the outermost dict."""

_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net")
# Keys of what training keeps beside a model.
_TRAINING = re.compile(r"(^|_)(optim\w*|rng|random|sched\w*|lr_sched\w*|scaler|callbacks?)(_|$)")
_MOST_NAMES = 8  # in a message

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StateDict:
    """The state dict of a checkpoint.

    Attributes:
        tensors: the dict, with entries that are no tensors as well.
        left_out: keys of all else, dotted.
    """

    tensors: dict[Any, Any]
    left_out: list[str]

    def notes(self) -> tuple[str, ...]:
        """Return the sentence that tells what was left out; nothing if nothing was."""
        return left_out_notes(self.left_out)


def find_state_dict(
    path: str, content: Any, key: str | None, is_tensor: Callable[[object], bool]
) -> StateDict:
    """Return the state dict in the `content` of the file `path`.

    Candidates are all dicts, at any depth, that hold tensors with dimensions of a floating-point
    type, or, if there are none, any tensors; but not what training keeps beside a model (keys that
    speak of optimizers, schedulers, random states). A single one is chosen; of several the single
    one in `state_dict`, `model_state_dict`, `model` or `net`, the first of these keys that there
    is.

    Args:
        path: for messages.
        content: what was unpickled.
        key: the key of the state dict, keys of nested dicts with dots between them, "." for the
            outermost one; None: the rule above.
        is_tensor: tells tensors.

    Raises:
        InvalidModel: no dict holds tensors, or several do.
        InvalidOptions: there is no dict of tensors at `key`.
    """
    if not isinstance(content, dict):
        raise file_error(path, f"holds a {type(content).__name__}, not a state dict")
    if key is None:
        place, chosen = _chosen(path, content, is_tensor)
    else:
        place, chosen = _at_key(path, content, key, is_tensor)
    return StateDict(chosen, _left_out(content, place, is_tensor))


def _chosen(
    path: str, content: dict[Any, Any], is_tensor: Callable[[object], bool]
) -> tuple[Path, dict[Any, Any]]:
    candidates = [entry for entry in _dicts(content) if any(map(is_tensor, entry[1].values()))]
    dicts = [entry for entry in candidates if _holds_weights(entry[1], is_tensor)] or candidates
    if len(dicts) == 1 or (not dicts and not content):
        return dicts[0] if dicts else ((), content)
    for key in _USUAL_KEYS:
        inside = [entry for entry in dicts if entry[0][:1] == (key,)]
        if len(inside) == 1:
            return inside[0]
        if inside:
            break
    if not dicts:
        keys = ", ".join(repr(key) for key in list(content)[:_MOST_NAMES])
        raise file_error(path, f"no state dict is found: there are no tensors, at the keys {keys}")
    keys = ", ".join(repr(".".join(place) or OUTERMOST) for place, _ in dicts[:_MOST_NAMES])
    reason = f"several dicts hold tensors, at the keys {keys}: choose one with --key (key=)"
    raise file_error(path, reason)


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[Path, dict[Any, Any]]]:
    """Yield the dicts that may be state dicts, from the outermost on, with their keys; what is in
    one that has several keys, with the first of these alone."""
    waiting: list[tuple[Path, dict[Any, Any]]] = [((), content)]
    known: set[int] = set()
    for place, entry in waiting:
        yield place, entry
        if id(entry) in known:
            continue
        known.add(id(entry))
        for key, value in entry.items():
            is_named = isinstance(key, str) and not _TRAINING.search(key.lower())
            if is_named and isinstance(value, dict) and value is not content:
                waiting.append(((*place, key), value))


def _holds_weights(content: dict[Any, Any], is_tensor: Callable[[object], bool]) -> bool:
    return any(
        is_tensor(value) and value.dim() > 0 and value.is_floating_point()
        for value in content.values()
    )


def _at_key(
    path: str, content: dict[Any, Any], key: str, is_tensor: Callable[[object], bool]
) -> tuple[Path, dict[Any, Any]]:
    places = [()] if key == OUTERMOST else list(_places(content, key.split(".")))
    if not places:
        keys = ", ".join(repr(name) for name in list(content)[:_MOST_NAMES])
        raise InvalidOptions("key", f"{path!r} has nothing at {key!r}; its keys are {keys}")
    place = places[0]
    value: Any = content
    for part in place:
        value = value[part]
    if not isinstance(value, dict) or not any(map(is_tensor, value.values())):
        what = type(value).__name__
        if isinstance(value, dict):
            prefix = ".".join(place) + "." if place else ""
            inside = ", ".join(repr(f"{prefix}{name}") for name in list(value)[:_MOST_NAMES])
            what = f"dict without tensors of its own, with the keys {inside}"
        raise InvalidOptions("key", f"{key!r} in {path!r} is a {what}, not a dict of tensors")
    return place, value


def _places(content: Any, parts: list[str]) -> Iterator[Path]:
    """Yield the ways to read a dotted key, some of whose dots may belong to the keys themselves."""
    if not parts:
        yield ()
        return
    if not isinstance(content, dict):
        return
    for count in range(len(parts), 0, -1):
        key = ".".join(parts[:count])
        if key in content:
            for rest in _places(content[key], parts[count:]):
                yield (key, *rest)


def _left_out(
    content: dict[Any, Any], place: Path, is_tensor: Callable[[object], bool]
) -> list[str]:
    """Return the keys of all that is no tensor of the chosen dict."""
    left_out = []
    for depth, part in enumerate((*place, None)):
        inside = ".".join(place[:depth])
        for key, value in content.items():
            is_used = key == part if part is not None else is_tensor(value)
            if not is_used:
                left_out.append(f"{inside}.{key}" if inside else str(key))
        if part is not None:
            content = content[part]
    return left_out
