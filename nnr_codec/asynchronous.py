"""Tensors as they arrive, for programs with asyncio: decoding runs in a thread beside the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, cast

import numpy.typing as npt

from .decoder import stream_tensors
from .decoding.source import Source
from .decoding.stream_map import Layers
from .options import DecodeLimits


class AsyncReader(Protocol):
    """What is read by awaiting, such as an ``asyncio.StreamReader``."""

    def read(self, n: int = -1, /) -> Awaitable[bytes]:
        """Return up to `n` bytes; none at the end."""


AsyncSource = AsyncReader | AsyncIterable[bytes]


async def stream_tensors_async(
    source: AsyncSource | Source,
    *,
    parents: Sequence[Source] = (),
    base: Sequence[Source] = (),
    only: str | None = None,
    layers: Layers = "dense",
    limits: DecodeLimits | None = None,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
    quality: int | None = None,
) -> AsyncGenerator[tuple[str, npt.NDArray[Any]], None]:
    """Decode a bitstream tensor by tensor for asyncio, as :func:`nnr_codec.stream_tensors` does.

    ``async for name, values in stream_tensors_async(response.content): …``

    Decoding runs in a thread of its own, only while the next tensor is awaited, and of the source
    no more is read than that tensor needs: so a slow user of the tensors slows the source down.
    When the iterator ends, is closed or is cancelled, that thread ends; of a synchronous pipe, when
    the read that is under way returns. Errors of the source come as they are.

    Args:
        source: an asynchronous one: an object with an awaited ``read(n)``
            (``asyncio.StreamReader``, aiohttp's ``response.content``, files of aiofiles), or an
            asynchronous iterator of bytes (httpx's ``response.aiter_bytes()``); or one of
            :func:`nnr_codec.decode`. It is not closed.
        parents, base, only, layers, limits, executor, cache, quality: as of
            :func:`nnr_codec.stream_tensors`; parents and the base are synchronous sources.

    Raises: as :func:`nnr_codec.decode`, and what the source raises.
    """
    loop = asyncio.get_running_loop()
    is_asynchronous = _has_awaited_read(source) or hasattr(source, "__aiter__")
    chunks = _Chunks(source, loop) if is_asynchronous else None
    thread = ThreadPoolExecutor(1, "nnr-decode")
    start = partial(
        stream_tensors,
        cast(Source, chunks or source),
        parents=parents,
        base=base,
        only=only,
        layers=layers,
        limits=limits,
        executor=executor,
        cache=cache,
        quality=quality,
    )
    tensors = None
    try:
        tensors = await loop.run_in_executor(thread, start)
        while (tensor := await loop.run_in_executor(thread, next, tensors, None)) is not None:
            named = [tensor]
            del tensor
            yield named.pop()  # so that nothing is held while the next one is decoded
    finally:
        if chunks is not None:
            chunks.stop()
        if tensors is not None:
            # Behind the step that is under way, if any; not to be cancelled with this one.
            await asyncio.shield(loop.run_in_executor(thread, tensors.close))
        thread.shutdown(wait=False)


def _has_awaited_read(source: object) -> bool:
    return inspect.iscoroutinefunction(getattr(source, "read", None))


class _Chunks:
    """An asynchronous source as a binary file, which another thread reads: a call of the loop for
    each piece that is needed."""

    def __init__(self, source: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Readers of asyncio and aiohttp are iterators too, but of lines.
        self._reader = source if _has_awaited_read(source) else None
        self._iterator = None if self._reader is not None else aiter(source)
        self._left = memoryview(b"")
        self._lock = threading.Lock()
        self._fetch: concurrent.futures.Future[bytes] | None = None
        self._stopped = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, at least one; nothing at the end.

        Raises:
            CancelledError: `stop` was called.
        """
        if not self._left:
            with self._lock:
                if self._stopped:
                    raise concurrent.futures.CancelledError
                self._fetch = asyncio.run_coroutine_threadsafe(self._next(size), self._loop)
            self._left = memoryview(self._fetch.result()).cast("B")
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)

    def stop(self) -> None:
        """Let `read` wait no more."""
        with self._lock:
            self._stopped = True
            if self._fetch is not None:
                self._fetch.cancel()

    async def _next(self, size: int) -> bytes:
        if self._reader is not None:
            return cast(bytes, await self._reader.read(size))
        chunk = b""
        while self._iterator is not None and not chunk:
            try:
                chunk = await anext(self._iterator)
            except StopAsyncIteration:
                break
        return chunk
