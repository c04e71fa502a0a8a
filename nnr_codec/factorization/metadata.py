"""The text entries that a model file has beside its tensors, as the model map carries them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .map_checks import MapError, shortened, typed

KEY = "nnr_model_map"
"""The entry of files of factors, which is no text of the model."""

MAX_METADATA_BYTES = 1 << 16
"""Of the UTF-8 texts of all keys and values together."""

USUAL = {"format": "pt"}
"""What readers of safetensors expect and files have: not carried, and written by nnr-decode."""


def carried_metadata(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return which of a file's entries a stream carries, and sentences about what it does not."""
    entries = {key: text for key, text in metadata.items() if key != KEY and _is_text(key, text)}
    entries = {key: text for key, text in entries.items() if USUAL.get(key) != text}
    if _size(entries) <= MAX_METADATA_BYTES:
        return entries, ()
    note = f"the file's metadata are left out, as they take more than {MAX_METADATA_BYTES} bytes"
    return {}, (note,)


def parse_metadata(value: Any) -> dict[str, str]:
    """Return the map's entry `metadata`.

    Raises:
        MapError: it is no object of texts, too long, or has the entry of files of factors.
    """
    entries: dict[str, str] = typed(value, dict, "metadata")
    for key, text in entries.items():
        typed(text, str, key)
        if key == KEY or not _is_text(key, text):
            raise MapError(f"{shortened(key)} is no text of a model's metadata")
    if _size(entries) > MAX_METADATA_BYTES:
        raise MapError(f"metadata of more than {MAX_METADATA_BYTES} bytes")
    return entries


def _is_text(key: str, text: str) -> bool:
    """Tell whether both can be written in UTF-8: no lone surrogates."""
    try:
        (key + text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(entries: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(text.encode()) for key, text in entries.items())
