"""`pyiscsi-target disk check`, `repair`, `compact` and `merge`."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import click

from ..server.config_values import format_size
from ..storage.base import BackingStore, StorageError, StorageFault
from ..storage.check import check_image, repair_image
from ..storage.finding import Finding, Remedy
from ..storage.merge import merge_image
from ..storage.open import open_image
from .disk_options import EXIT_FAILED, ImagePath, failing_softly
from .disk_progress import shown

_path = click.argument("path", type=ImagePath())


@runtime_checkable
class Compactable(Protocol):
    """A disk whose file can be made shorter."""

    async def compact(self, progress: Callable[[int, int], None]) -> None:
        """Free blocks of zeroes and close gaps; the disk is to be closed then."""


async def _with_disk(path: Path, work: Callable[[BackingStore], Awaitable[None]]) -> None:
    """Open the image alone, for writing, and close it whatever happens."""
    disk = open_image(path, read_only=False)
    try:
        await work(disk)
    finally:
        await disk.close()


@click.command(short_help="Look for damage.")
@_path
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: Path, as_json: bool) -> None:
    """Look for damage in the image at PATH and in its parents. Nothing is changed.

    Exit status 1 where something is wrong; space that is not in use is not.
    """
    with failing_softly():
        found = asyncio.run(check_image(path))
    _print(path, found, as_json=as_json)


@click.command(short_help="Put right what can be, without guessing about data.")
@_path
def repair(path: Path) -> None:
    """Put right what a crash or a bad sector did to the structures of the image at PATH.

    A damaged footer or header is written from its copy, a log is replayed. Data is never guessed:
    what is left is printed, with exit status 1.
    """
    with failing_softly():
        before = asyncio.run(check_image(path))
        if any(finding.remedy is Remedy.REPAIR for finding in before):
            asyncio.run(repair_image(path))
        found = asyncio.run(check_image(path))
    for finding in before:
        if finding not in found:
            click.echo(f"{path}: repaired: {finding.text}")
    _print(path, found, as_json=False)


def _print(path: Path, found: list[Finding], *, as_json: bool) -> None:
    wrong = [finding for finding in found if finding.remedy is not Remedy.COMPACT]
    if as_json:
        listed = [{"text": one.text, "remedy": one.remedy.value} for one in found]
        click.echo(
            json.dumps({"path": str(path), "sound": not wrong, "findings": listed}, indent=2)
        )
    else:
        for finding in found:
            helps = "" if finding.remedy is Remedy.NONE else f" (disk {finding.remedy.value} helps)"
            click.echo(f"{path}: {finding.text}{helps}")
        if not found:
            click.echo(f"{path}: sound")
    if wrong:
        sys.exit(EXIT_FAILED)


@click.command(short_help="Make the file of an image as short as it can be.")
@_path
def compact(path: Path) -> None:
    """Free the blocks that hold only zeroes and close the gaps in the file of the image at PATH.

    Cut short at any time, the image is as good as before.
    """
    with failing_softly():
        before, after = asyncio.run(_compact(path))
    click.echo(f"{path}: {format_size(after)}, was {format_size(before)}")


async def _compact(path: Path) -> tuple[int, int]:
    before = path.stat().st_size  # noqa: ASYNC240 (nothing waits)

    async def work(disk: BackingStore) -> None:
        if not isinstance(disk, Compactable):
            message = f"{path}: only dynamic and differencing images can be compacted"
            raise StorageError(StorageFault.INVALID, message)
        with shown("compacting") as progress:
            await disk.compact(progress)

    await _with_disk(path, work)
    return before, path.stat().st_size  # noqa: ASYNC240


@click.command(short_help="Put a differencing disk into its parent.")
@click.argument("child", type=ImagePath())
def merge(child: Path) -> None:
    """Write what CHILD has of its own into its parent, and delete CHILD.

    Neither may be in use. The parent takes on the size of CHILD. Cut short, CHILD shows the same
    disk as before and can be merged again. Other children of the parent do not fit it any more.
    """
    with failing_softly(), shown("merging") as progress:
        parent = asyncio.run(merge_image(child, progress))
        child.unlink()
    click.echo(f"{parent}: holds what {child} did")
