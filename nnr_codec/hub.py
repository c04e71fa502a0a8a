"""Folders and repositories of the Hugging Face Hub whose weights are a bitstream, `model.nnr`.

Beside it lie the files that such a folder has anyway: `config.json`, a tokenizer, and so on. This
is what ``nnr-encode FOLDER -o FOLDER/`` makes, too. Needs the extra `torch`; for the Hub, the
package huggingface_hub (extra `remote`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from .checkpoints.atomic import atomic_output
from .checkpoints.folder import STREAM, WEIGHT_ENDINGS, files_to_copy, filled_folder
from .decoding.stream_map import Layers
from .encoder import EncodeResult, ModelLike, encode
from .errors import InvalidModel, InvalidOptions
from .layers import load_into
from .options import DecodeLimits, EncodeOptions

CONFIG = "config.json"
"""Name of the file that says what a model is made of."""

M = TypeVar("M", bound=nn.Module)
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>.+))?")


def from_pretrained(
    path_or_repo: str | os.PathLike[str],
    model_class: Callable[..., M],
    *,
    layers: Layers = "factorized",
    strict: bool = True,
    limits: DecodeLimits | None = None,
    quality: int | None = None,
    **arguments: Any,
) -> M:
    """Make a module, and load the bitstream of a folder or of a repository into it.

    The weights are decoded and loaded one at a time. The module is returned in evaluation mode.

    Args:
        path_or_repo: a folder with `model.nnr`, or a repository of the Hub, ``org/name`` or
            ``org/name@revision``, of which this file and what is no weights is downloaded
            (``HF_ENDPOINT``, ``HF_HOME`` and so on count as usual).
        model_class: makes the module. One with a `config_class`, as transformers has it, gets the
            configuration that this reads from the folder; one with `load_config` and `from_config`,
            as diffusers has it, makes the module of what the former reads; any other gets the
            entries of `config.json`, if there is one, by keyword.
        layers, strict, limits, quality: as of :func:`nnr_codec.layers.load_into`.
        arguments: further ones of the class, which win over entries of `config.json`.

    Raises:
        InvalidModel: the folder has no bitstream, `config.json` is damaged or not what the class
            takes, or the module and the stream disagree.
        InvalidOptions: there is no such folder, and it is no name of a repository; or the package
            huggingface_hub is missing.
        BitstreamError: the stream is damaged, or asks for what is not supported or allowed.

    It raises what huggingface_hub and the class raise as well.
    """
    folder = _folder(os.fspath(path_or_repo))
    stream = os.path.join(folder, STREAM)
    if not os.path.isfile(stream):
        raise InvalidModel(folder, f"has no file {STREAM}")
    module = _made(model_class, folder, arguments)
    load_into(module, stream, layers, strict=strict, limits=limits, quality=quality)
    module.eval()
    return module


def save_pretrained(
    model: ModelLike,
    folder: str | os.PathLike[str],
    options: EncodeOptions | None = None,
    **arguments: Any,
) -> EncodeResult:
    """Encode a model into the file `model.nnr` of a folder, with what belongs beside it.

    That is, of a module its configuration, if it has a `config`: one that can save itself, as those
    of transformers, or a dict or dataclass, which becomes `config.json`. Of a folder, it is all
    that is no weights. Files of these names are replaced; a new folder goes again if anything
    fails.

    Args:
        model: a module of torch, a folder or a model file, a Model, or arrays by name.
        folder: is made if it does not exist.
        options: by default ``EncodeOptions()``.
        arguments: further ones of :func:`nnr_codec.encode`.

    Raises:
        InvalidOptions: the folder is that of the model.
        InvalidModel: the configuration cannot be written as JSON.

    It raises what :func:`nnr_codec.encode` raises as well.
    """
    output = os.fspath(folder)
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    names = files_to_copy(source, output) if os.path.isdir(source) else []
    save_config = _saver_of_config(model)
    with filled_folder(source, output, names, overwrite=True):
        stream = os.path.join(output, STREAM)
        result = encode(model, stream, options, overwrite=True, **arguments)
        save_config(output)
    return result


def _folder(text: str) -> str:
    """Return the folder of that path, or that a repository of the Hub was downloaded to."""
    if os.path.isdir(text):
        return text
    repository = _REPOSITORY.fullmatch(text)
    if repository is None or os.path.exists(text):
        reason = f"{text!r} is neither a folder nor a repository, org/name or org/name@revision"
        raise InvalidOptions("path_or_repo", reason)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        reason = f"there is no folder {text!r}; to look for it at the Hugging Face Hub needs "
        reason += "huggingface_hub: pip install huggingface_hub"
        raise InvalidOptions("path_or_repo", reason) from None
    others = [f"*{ending}" for ending in WEIGHT_ENDINGS if not STREAM.endswith(ending)]
    return str(
        snapshot_download(
            repository["name"], revision=repository["revision"], ignore_patterns=others
        )
    )


def _made(model_class: Callable[..., M], folder: str, arguments: Mapping[str, Any]) -> M:
    """Make a module of what a folder says."""
    config_class: Any = getattr(model_class, "config_class", None)
    if hasattr(config_class, "from_pretrained"):
        return model_class(config_class.from_pretrained(folder), **arguments)
    if hasattr(model_class, "load_config") and hasattr(model_class, "from_config"):
        module: M = model_class.from_config(model_class.load_config(folder), **arguments)
        return module
    given = {**_json_config(os.path.join(folder, CONFIG)), **arguments}
    try:
        inspect.signature(model_class).bind(**given)
    except TypeError as error:
        name = getattr(model_class, "__name__", type(model_class).__name__)
        reason = f"is not what {name} takes: {error}"
        raise InvalidModel(os.path.join(folder, CONFIG), reason) from None
    return model_class(**given)


def _json_config(path: str) -> dict[str, Any]:
    """Return the entries of a file of JSON; none if there is no such file."""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:  # of UTF-8, too
        raise InvalidModel(path, f"is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidModel(path, "is no object of JSON")
    return config


def _saver_of_config(model: Any) -> Callable[[str], object]:
    """Return a function that writes the configuration of a module, if it has any, to a folder."""
    config: Any = getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        return lambda folder: None
    if hasattr(config, "save_pretrained"):
        return lambda folder: config.save_pretrained(folder)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping):
        reason = (
            f"is a {type(config).__name__}: no dict, no dataclass, and nothing that saves itself"
        )
        raise InvalidModel("config", reason)
    try:
        text = json.dumps(dict(config), indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidModel("config", f"cannot be written as JSON: {error}") from None
    return lambda folder: _write(os.path.join(folder, CONFIG), text)


def _write(path: str, text: str) -> None:
    with atomic_output(path, overwrite=True) as file:
        file.write(text.encode())
