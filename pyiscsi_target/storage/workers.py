"""A store's own threads: where calls go that may block.

Every store has a few of its own, started only when needed, so that a disk that hangs holds up no
other disk. This module must not know what the calls do.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from .base import StorageError, StorageFault

THREADS_PER_STORE = 8

P = ParamSpec("P")
R = TypeVar("R")


class Workers:
    """At most `limit` threads, whose calls keep the caller's buffers until they really end."""

    __slots__ = ("_closed", "_executor", "_name", "_running")

    def __init__(self, name: str, limit: int = THREADS_PER_STORE) -> None:
        self._name = name
        self._closed = False
        self._executor = ThreadPoolExecutor(limit, thread_name_prefix=f"store {name}")
        self._running: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in a thread.

        Cancelling takes a call that waits for a thread out of the queue. A call that has begun
        cannot be stopped and still uses its buffers, so the cancellation arrives when it has ended.
        Raises what the call raises, and StorageError (GONE) after `close`.
        """
        if self._closed:
            raise StorageError(StorageFault.GONE, f"{self._name}: closed")
        submitted = self._executor.submit(call, *args, **kwargs)
        future = asyncio.wrap_future(submitted)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError as error:
                if submitted.cancel():
                    raise
                cancelled = error
        if cancelled is not None:
            future.exception()  # nobody is left to hear of it
            raise cancelled
        return future.result()

    async def close(self) -> None:
        """Wait for every call, then end the threads."""
        while self._running:
            await asyncio.wait(self._running)
        self._closed = True
        self._executor.shutdown()
