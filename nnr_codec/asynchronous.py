"""Tensors as they arrive, for programs with asyncio: decoding runs in a thread beside the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol, cast

import numpy.typing as npt

from .decoder import stream_tensors
from .decoding.source import Source
from .decoding.stream_map import Layers
from .options import DecodeLimits
from .remote.addresses import is_address
from .remote.remote_file import RemoteFile
from .remote.shutdown import Shutdown


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
    With an `executor`, other tensors are decoded meanwhile, up to 512 MB of them, and another
    thread reads ahead: until 16 units wait to be decoded, or 64 MB of them.

    When the iterator ends, is closed or is cancelled, these threads end. A request to a server of
    http or https is cut off; a connection that is being made, and a read of a synchronous pipe or
    of other addresses, has to return first. Errors of the source come as they are.

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
    files = _RemoteFiles(cache)
    thread = ThreadPoolExecutor(1, "nnr-decode")

    def start() -> Generator[tuple[str, npt.NDArray[Any]], None, None]:
        return stream_tensors(
            files.opened(cast(Source, chunks or source)),
            parents=files.opened_each(parents),
            base=files.opened_each(base),
            only=only,
            layers=layers,
            limits=limits,
            executor=executor,
            cache=cache,
            quality=quality,
        )

    def close() -> None:
        if tensors is not None:
            tensors.close()
        files.close()

    tensors = None
    started = loop.run_in_executor(thread, start)
    try:
        tensors = await started
        while (tensor := await loop.run_in_executor(thread, next, tensors, None)) is not None:
            named = [tensor]
            del tensor
            yield named.pop()  # so that nothing is held while the next one is decoded
    finally:
        if chunks is not None:
            chunks.stop()
        files.stop()
        closed = loop.run_in_executor(thread, close)  # behind the step that is under way, if any
        thread.shutdown(wait=False)
        if not started.cancelled():  # else it may take long to open a file, and nothing came of it
            await asyncio.shield(closed)  # not to be cancelled with this one


def _has_awaited_read(source: object) -> bool:
    return inspect.iscoroutinefunction(getattr(source, "read", None))


class _RemoteFiles:
    """Opens sources that are addresses, so that their thread can be told not to wait any more."""

    def __init__(self, cache: str | os.PathLike[str] | None) -> None:
        self._cache = cache
        self._kept = ExitStack()
        self._lock = threading.Lock()  # of what follows
        self._shutdowns: list[Shutdown] = []
        self._stopped = False

    def opened(self, source: Source) -> Source:
        """Open a source that is an address; return any other one as it is."""
        if not is_address(source):
            return source
        shutdown = Shutdown()
        with self._lock:
            self._shutdowns.append(shutdown)
            if self._stopped:
                shutdown.begin()
        file = RemoteFile(str(source), cache=self._cache, shutdown=shutdown)
        return cast(Source, self._kept.enter_context(file))

    def opened_each(self, sources: Sequence[Source]) -> Sequence[Source]:
        """Open those that are addresses; what is no list the decoder refuses."""
        if not isinstance(sources, Sequence) or not any(map(is_address, sources)):
            return sources
        return list(map(self.opened, sources))

    def stop(self) -> None:
        """Let nothing wait for a server any more."""
        with self._lock:
            self._stopped = True
            for shutdown in self._shutdowns:
                shutdown.begin()

    def close(self) -> None:
        """Close what was opened."""
        self._kept.close()


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
