"""The disks of a server: their stores and logical units, from opening to closing.

Knows the configuration of disks and what is stored of them; neither targets nor sessions.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from ..scsi.logical_unit import DiskSettings, LogicalUnit
from ..storage.base import BackingStore, StorageError, StorageFault
from ..storage.create_child import create_child, descends_from
from ..storage.open import image_path, make_directory, open_store
from ..storage.snapshots import drop_unfinished
from ..storage.vhdx_create import Kind
from .config_model import DiskConfig
from .identities import identities_of
from .logs import log_event
from .reservation_state import StoredReservations, read_boot_id
from .state_store import StateStore

WATCH_INTERVAL_S = 10.0  # between looks at disks' files, and how much room their file systems have

RETURN_INTERVAL_S = 2.0  # between looks at whether an image that is gone is back

_log = logging.getLogger(__name__)


class ServedDisks:
    """Logical units by the name of their disk. Lives on the event loop, which owns its state."""

    def __init__(self, configs: Mapping[str, DiskConfig], base_dir: Path) -> None:
        """`base_dir` is the config file's folder: below it, missing folders are created."""
        self.units: dict[str, LogicalUnit] = {}
        self._configs = configs
        self._base_dir = base_dir
        self._paths = {name: image_path(disk.path, base_dir) for name, disk in configs.items()}
        self._stores: dict[str, BackingStore] = {}
        self._files: dict[str, tuple[int, int] | None] = {}  # device and number of each disk's
        self._lost: set[str] = set()  # those whose file is not at its path any more
        self._returning: dict[str, asyncio.Task[None]] = {}

    def open(self, state: StateStore) -> None:
        """Open all. Raises StorageError and StateError; `close` closes those that are open."""
        identities = identities_of(self._configs, state)
        reservations = StoredReservations(state, read_boot_id())
        for name, disk in self._configs.items():
            store = self._stores[name] = self._open_store(name, disk.size_bytes)
            self._note_file(name)
            self.units[name] = LogicalUnit(
                name,
                store,
                identities[name],
                _settings(disk, store),
                reservations,
                reservations.load(name),
            )

    def _open_store(self, name: str, size_bytes: int | None) -> BackingStore:
        disk, image = self._configs[name], self._paths[name]
        if image is not None and disk.differencing_of is not None:
            self._make_child(image, disk.differencing_of)
        store = open_store(
            disk.path,
            size_bytes=size_bytes,
            read_only=disk.read_only,
            base=self._base_dir,
            block_size=disk.block_size,
            kind=Kind(disk.kind),
            discards=disk.discard_on_exit,
            limit_bytes=disk.space_limit,
        )
        if image is None or not image.is_file() or disk.read_only or disk.discard_on_exit:
            return store
        try:  # only now that it is locked: another process may be about to take a snapshot
            drop_unfinished(image.resolve())
        except BaseException:
            store.close_blocking()
            raise
        return store

    def _make_child(self, image: Path, parent: Path) -> None:
        """The image of a disk that is `differencing_of` another, where it is missing."""
        if not image.exists():
            make_directory(image.parent, self._base_dir)
            create_child(image, parent)
        elif not descends_from(image, parent):
            message = f"{image}: does not descend from {parent}, as its configuration has it"
            raise StorageError(StorageFault.INVALID, message)

    def _note_file(self, name: str) -> None:
        path = self._paths[name]
        self._files[name] = None if path is None else _identity(path)

    def sizes_bytes(self) -> dict[str, int]:
        """The size of each disk."""
        return {name: store.size_bytes for name, store in self._stores.items()}

    def image(self, name: str) -> Path | None:
        """The file that is the disk's own; None where there is none (`ram:`, a block device).

        Raises StorageError (GONE) where the file at its path is not the one that is served.
        """
        disk = self._configs[name]
        path = self._paths[name]
        if path is None or path.is_block_device() or disk.discard_on_exit:
            return None
        if name not in self._returning and _identity(path) != self._files[name]:
            message = f"{path}: is not the file that is served: it was replaced, or is gone"
            raise StorageError(StorageFault.GONE, f"{message}; start the server anew")
        return path.resolve()

    async def exchange(self, name: str, change: Callable[[], object]) -> None:
        """Close the disk's image, let `change` work on its files in a thread, and open it again.

        For who holds the disk (`TaskSet.hold`): nobody may use its store meanwhile. The image is
        opened again even where one of them fails; where that cannot be, commands end in NOT READY
        until it can. Raises what `change` raises, and StorageError.
        """
        try:
            await self.units[name].store.close()
            await asyncio.to_thread(change)
        finally:
            try:
                await self._open_again(name)
            except StorageError as error:
                log_event(_log, logging.ERROR, "disk_gone", disk=name, reason=error)
                self._returning[name] = asyncio.create_task(self._wait_for(name))
                raise

    async def _open_again(self, name: str) -> None:
        store = await asyncio.to_thread(self._open_store, name, None)
        self._stores[name] = store
        self._note_file(name)
        self.units[name].take_store(store)

    async def _wait_for(self, name: str) -> None:
        """Look again and again whether the disk's image can be opened."""
        while True:
            await asyncio.sleep(RETURN_INTERVAL_S)
            async with self.units[name].tasks.hold():
                try:
                    await self._open_again(name)
                except StorageError:
                    continue
            del self._returning[name]
            log_event(_log, logging.WARNING, "disk_back", disk=name)
            return

    async def watch(self) -> None:
        """Warn initiators before thin disks have no room left, and the operator of files that were
        moved or replaced. Runs until it is cancelled.
        """
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            await asyncio.to_thread(self._look_at_files)
            for unit in self.units.values():
                if unit.thin and unit.settings.space_warning_bytes:
                    try:
                        unit.notice_space(await unit.store.available_bytes())
                    except StorageError as error:
                        log_event(_log, logging.ERROR, "no_space_known", reason=error)

    def _look_at_files(self) -> None:
        """Say of each file once that it is not at its path any more; what is written is lost."""
        for name, served in list(self._files.items()):
            path = self._paths[name]
            if path is None or name in self._returning:
                continue
            if _identity(path) == served:
                self._lost.discard(name)
            elif name not in self._lost:
                self._lost.add(name)
                log_event(_log, logging.ERROR, "disk_file_lost", disk=name, path=path)

    async def close(self) -> None:
        """Flush and close all; what fails is logged. Idempotent."""
        for task in self._returning.values():
            task.cancel()
        await asyncio.gather(*self._returning.values(), return_exceptions=True)
        for name, store in self._stores.items():
            try:
                await store.close()
            except StorageError as error:
                log_event(_log, logging.ERROR, "disk_close_failed", disk=name, reason=error)
        self._stores.clear()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _settings(disk: DiskConfig, store: BackingStore) -> DiskSettings:
    physical = disk.physical_block_size
    return DiskSettings(
        block_size=disk.block_size,
        physical_block_size=physical
        or max(disk.block_size, store.capabilities.physical_block_bytes),
        read_only=disk.read_only,
        write_cache=disk.write_cache,
        thin=disk.thin,
        removable=disk.removable,
        space_warning_bytes=disk.space_warning,
    )
