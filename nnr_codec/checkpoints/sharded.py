"""Sharded models: a JSON index over files of safetensors or torch beside it, named
`*.safetensors.index.json` or `*.bin.index.json`.

The index is an object whose member `weight_map` gives, for each tensor, the file that holds it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from nnr_codec.checkpoints.reading import file_error, open_regular, parsing, unique_keys
from nnr_codec.model import Model

_MAP = "weight_map"
_MAX_INDEX_BYTES = 100_000_000  # as for the header of a single file


def read(path: str, read_shard: Callable[[str], Model]) -> Model:
    """Open all the shards of the index `path`; the tensors come in the order of its weight_map.

    `read_shard` opens one of them.

    Shards are taken from the folder of the index and the folders below it; links are followed. The
    metadata are those of the shards, of the first that has an entry of the name.

    Raises:
        InvalidModel: the index is damaged, a shard is missing, damaged, or named by an absolute
            path or one with `..`, or the index and the shards disagree on the tensors' names.
    """
    shard_names = _read_index(path)
    with ExitStack() as stack:
        shards: dict[str, Model] = {}
        metadata: dict[str, str] = {}
        for shard in dict.fromkeys(shard_names.values()):
            model = read_shard(_shard_path(path, shard))
            stack.callback(model.close)
            shards[shard] = model
            metadata = {**model.metadata, **metadata}
        for name, shard in shard_names.items():
            if name not in shards[shard]:
                reason = f"is not in the shard {shard!r}, where the index has it"
                raise file_error(path, reason, name)
        parameters = [shards[shard][name] for name, shard in shard_names.items()]
        for shard, model in shards.items():
            for name in model:
                if name not in shard_names:
                    reason = f"shard {shard!r} holds it, but the index does not"
                    raise file_error(path, reason, name)
        notes = [f"{shard}: {note}" for shard, model in shards.items() for note in model.notes]
        files = [path, *(file for model in shards.values() for file in model.files)]
        opened = stack.pop_all()
        return Model(
            parameters,
            metadata=metadata,
            source=path,
            files=files,
            notes=notes,
            on_close=opened.close,
        )


def _read_index(path: str) -> dict[str, str]:
    """Return the weight_map: the shard's path, as it is written there, by the tensor's name."""
    with open_regular(path) as file, parsing(path):
        text = file.read(_MAX_INDEX_BYTES + 1)
        if len(text) > _MAX_INDEX_BYTES:
            raise file_error(path, f"an index of more than {_MAX_INDEX_BYTES} bytes")
        index: Any = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    shard_names = index.get(_MAP) if isinstance(index, dict) else None
    if not isinstance(shard_names, dict):
        raise file_error(
            path, f"is JSON, but not the index of a sharded model: it lacks an object {_MAP!r}"
        )
    for name, shard in shard_names.items():
        if not isinstance(shard, str):
            raise file_error(path, "its shard is not text", name)
    return shard_names


def _shard_path(path: str, shard: str) -> str:
    # Windows' separators and drives are refused everywhere, so that an index means the same.
    parts = re.split(r"[/\\]", shard)
    if not shard or os.path.isabs(shard) or ":" in parts[0] or not parts[0] or ".." in parts:
        raise file_error(path, f"the shard {shard!r} is not in the folder of the index")
    return os.path.join(os.path.dirname(path), shard)
