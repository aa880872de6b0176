"""Snapshots of disks that are served: at one instant for several disks, without ending a session.

Commands wait while it happens, an instant for images that know differencing. What the files do is
the business of `storage.snapshots`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..scsi.sense import Asc
from ..storage.base import StorageError
from ..storage.snapshot_deletion import deletable_snapshot, delete_snapshot
from ..storage.snapshots import (
    COPY_LIMIT_BYTES,
    Snapshot,
    existing_snapshot,
    list_snapshots,
    require_unused,
    restore_snapshot,
    snapshot_path,
    take_snapshot,
)
from .control import ControlError, Handler, Json
from .logs import log_event
from .served_disks import ServedDisks

T = TypeVar("T")
Change = Callable[[Path], Callable[[], object]]
"""What to do to the files of an image, in a thread."""

_log = logging.getLogger(__name__)


class SnapshotRequests:
    """Requests by name. `changing`: held while disks change, which only one request may do."""

    def __init__(self, disks: ServedDisks, changing: asyncio.Lock) -> None:
        self._disks = disks
        self._changing = changing
        self.handlers: Mapping[str, Handler] = {
            "snapshot": self._snapshot,
            "snapshots": self._snapshots,
            "restore": self._restore,
            "delete-snapshot": self._delete,
        }

    async def _snapshots(self, request: Json) -> Json:
        """The snapshots of each of `disks`."""
        images = self._images(request)
        found = {}
        for disk, image in images.items():
            found[disk] = await _in_thread(partial(list_snapshots, image), disk)
        return {
            "snapshots": {disk: [describe(one) for one in ones] for disk, ones in found.items()}
        }

    async def _snapshot(self, request: Json) -> Json:
        """Keep what all of `disks` hold at one instant as the `snapshot` of each."""
        images, name = self._images(request), _name_of(request)
        for disk, image in images.items():
            await _in_thread(partial(require_unused, image, name), disk)
        async with self._changing, self._held(list(images)):
            done = await self._exchange(
                images,
                lambda image: partial(take_snapshot, image, name),
                undo=lambda image: partial(delete_snapshot, image, name),
            )
        log_event(_log, logging.INFO, "snapshot_taken", snapshot=name, disks=", ".join(done))
        return {"snapshot": name, "disks": done}

    async def _restore(self, request: Json) -> Json:
        """Put `disks` back to their `snapshot`; with sessions on them only with `force`."""
        images, name = self._images(request), _name_of(request)
        for disk, image in images.items():
            await _in_thread(partial(existing_snapshot, image, name), disk)
            self._check_use(disk, force=bool(request.get("force")))
        async with self._changing, self._held(list(images)):
            for disk in images:
                self._check_use(disk, force=bool(request.get("force")))
            done = await self._exchange(
                images,
                lambda image: partial(restore_snapshot, image, name),
                attention=Asc.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED,
            )
        log_event(_log, logging.INFO, "snapshot_restored", snapshot=name, disks=", ".join(done))
        return {"snapshot": name, "disks": done}

    async def _delete(self, request: Json) -> Json:
        """Forget the `snapshot` of each of `disks`."""
        images, name = self._images(request), _name_of(request)
        for disk, image in images.items():
            await _in_thread(partial(deletable_snapshot, image, name), disk)
        async with self._changing, self._held(list(images)):
            done = await self._exchange(
                images,
                lambda image: partial(
                    delete_snapshot, image, name, merge_limit_bytes=COPY_LIMIT_BYTES
                ),
            )
        log_event(_log, logging.INFO, "snapshot_deleted", snapshot=name, disks=", ".join(done))
        return {"snapshot": name, "disks": done}

    async def _exchange(
        self,
        images: Mapping[str, Path],
        change: Change,
        *,
        undo: Change | None = None,
        attention: Asc | None = None,
    ) -> list[str]:
        """Do it to one held disk after the other; the names of all.

        Where it fails with one, it is undone with those before, if it can be.
        """
        done: list[str] = []
        for disk, image in images.items():
            try:
                await self._disks.exchange(disk, change(image))
            except StorageError as error:
                if undo is not None:
                    done = await self._undo({name: images[name] for name in done}, undo)
                others = f" (done: {', '.join(done)})" if done else ""
                raise ControlError(f"disk {disk!r}: {error}{others}") from error
            if attention is not None:
                self._disks.units[disk].attentions.establish_for_others(attention)
            done.append(disk)
        return done

    async def _undo(self, images: Mapping[str, Path], undo: Change) -> list[str]:
        """The names of the disks with which it could not be undone."""
        left: list[str] = []
        for disk, image in images.items():
            try:
                await self._disks.exchange(disk, undo(image))
            except StorageError as error:
                log_event(_log, logging.ERROR, "not_undone", disk=disk, reason=error)
                left.append(disk)
        return left

    def _images(self, request: Json) -> dict[str, Path]:
        """The files of the disks that the request names. Raises ControlError."""
        names = request.get("disks")
        if not isinstance(names, list) or not names:
            raise ControlError("no disk is named")
        images = {}
        for name in map(str, names):
            if name not in self._disks.units:
                known = ", ".join(self._disks.units)
                raise ControlError(f"no disk {name!r} is served; there are: {known}")
            try:
                image = self._disks.image(name)
            except StorageError as error:
                raise ControlError(f"disk {name!r}: {error}") from error
            if image is None:
                raise ControlError(f"disk {name!r} has no file of its own, so no snapshots")
            images[name] = image
        return images

    def _check_use(self, disk: str, *, force: bool) -> None:
        nexuses = list(self._disks.units[disk].attentions.nexuses)
        if nexuses and not force:
            raise ControlError(
                f"disk {disk!r} is in use by {nexuses[0].initiator_name}; log out there,"
                " or use force and make it read the disk anew"
            )

    @asynccontextmanager
    async def _held(self, disks: Sequence[str]) -> AsyncIterator[None]:
        """Nothing touches any of the disks, and what was written to them is on the medium."""
        async with AsyncExitStack() as stack:
            for disk in disks:
                await stack.enter_async_context(self._disks.units[disk].tasks.hold())
            for disk in disks:
                try:
                    await self._disks.units[disk].store.flush()
                except StorageError as error:
                    raise ControlError(f"disk {disk!r}: {error}") from error
            yield


def describe(snapshot: Snapshot) -> Json:
    """A snapshot as plain values."""
    return {
        "name": snapshot.name,
        "path": str(snapshot.path),
        "taken_s": snapshot.taken_s,
        "file_bytes": snapshot.file_bytes,
        "whole": snapshot.whole,
    }


def _name_of(request: Json) -> str:
    name = str(request.get("snapshot"))
    try:
        snapshot_path(Path("disk"), name)
    except StorageError as error:
        raise ControlError(str(error)) from error
    return name


async def _in_thread(call: Callable[[], T], disk: str) -> T:
    try:
        return await asyncio.to_thread(call)
    except StorageError as error:
        raise ControlError(f"disk {disk!r}: {error}") from error
