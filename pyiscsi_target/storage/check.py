"""Checking images, and repairing what can be repaired without guessing about data."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from .base import BackingStore, StorageError, StorageFault
from .finding import Finding, Remedy
from .open import open_image

_DAMAGE = frozenset({StorageFault.INVALID, StorageFault.SHORT, StorageFault.MISSING})


@runtime_checkable
class Checkable(Protocol):
    """A disk that can say more of itself than that it could be opened."""

    async def findings(self) -> list[Finding]:
        """What is odd about it, but no reason to refuse it. Raises StorageError."""


@runtime_checkable
class Repairable(Protocol):
    """A disk that has more to repair than opening it does."""

    async def repair(self) -> None:
        """Put right what can be without guessing about data. Raises StorageError."""


async def check_image(path: Path) -> list[Finding]:
    """What is wrong with the image, or with one of its parents.

    Raises StorageError where it cannot be looked at: it is in use, or missing, or unreadable.
    """
    try:
        disk = open_image(path, read_only=True)
    except StorageError as error:
        if error.fault not in _DAMAGE or not path.exists():  # noqa: ASYNC240 (nothing waits)
            raise
        return [Finding(str(error).removeprefix(f"{path}: "), Remedy.NONE)]
    try:
        return await _findings(disk)
    finally:
        await disk.close()


async def _findings(disk: BackingStore) -> list[Finding]:
    found: list[Finding] = []
    one: BackingStore | None = disk
    while one is not None:
        if isinstance(one, Checkable):
            of_parent = "" if one is disk else f"parent {one.file.name}: "  # type: ignore[attr-defined]
            found += [
                Finding(of_parent + finding.text, finding.remedy)
                for finding in await one.findings()
            ]
        one = getattr(one, "parent", None)
    return found


async def repair_image(path: Path) -> None:
    """Put right what can be: footers and headers from their copies, logs. Parents stay as they are.

    Raises StorageError where the image cannot be opened: then nothing has changed.
    """
    disk = open_image(path, read_only=False)  # this repairs footers and replays logs
    try:
        if isinstance(disk, Repairable):
            await disk.repair()
    finally:
        await disk.close()
