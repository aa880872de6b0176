"""`pyiscsi-target disk convert`: the same disk in another format or kind."""

import asyncio
from pathlib import Path

import click

from ..storage.base import BackingStore, StorageError, StorageFault
from ..storage.convert import copy_disk, verify_copy
from ..storage.create import ImageFormat, NewImage, fill_new, format_of
from ..storage.new_file import new_file
from ..storage.open import open_image
from ..storage.vhdx_create import Kind
from .disk_options import (
    BLOCK_SIZE,
    FORCE,
    FORMAT,
    FORMATS,
    KINDS,
    SECTOR_SIZE,
    ImagePath,
    failing_softly,
    warn_of_name,
)
from .disk_progress import shown

_WHOLE_KINDS = [name for name, kind in KINDS.items() if kind is not Kind.DIFFERENCING]


@click.command(short_help="Copy a disk into another format or kind.")
@click.argument("source", type=ImagePath())
@click.argument("target", type=ImagePath())
@click.option(
    "--kind",
    "kind_name",
    type=click.Choice(_WHOLE_KINDS),
    default=Kind.DYNAMIC.value,
    help="fixed: all of it allocated. dynamic: holes stay holes (the default).",
)
@BLOCK_SIZE
@SECTOR_SIZE
@FORMAT
@FORCE
def convert(
    source: Path,
    target: Path,
    kind_name: str,
    block_size: int,
    sector_size: int,
    format_name: str | None,
    force: bool,
) -> None:
    """Copy the disk SOURCE to TARGET, and compare both afterwards.

    The copy of a differencing disk holds what its parents do and needs them no more. TARGET is
    complete, or not there: also after Ctrl-C.
    """
    image_format = FORMATS[format_name] if format_name else format_of(target)
    wanted = NewImage(image_format, KINDS[kind_name], 0, block_size, sector_size)
    with failing_softly():
        asyncio.run(_convert(source, target, wanted, force))
    click.echo(f"{target}: {kind_name} {image_format.name.lower()}, the same as {source}")
    warn_of_name(target, image_format)


async def _convert(source: Path, target: Path, wanted: NewImage, force: bool) -> None:
    disk = open_image(source, read_only=True)
    try:
        with new_file(target, overwrite=force, suffix=wanted.format.value) as temporary:
            image = _sized(wanted, disk)
            await asyncio.to_thread(fill_new, temporary, target, image, None)
            copy = open_image(temporary, read_only=False)
            try:
                await _copy(disk, copy)
            finally:
                await copy.close()
    finally:
        await disk.close()


def _sized(wanted: NewImage, disk: BackingStore) -> NewImage:
    """As large as the source, of whole sectors, which are the source's where that can be."""
    sector = wanted.sector_bytes
    if not sector:
        can_choose = wanted.format is ImageFormat.VHDX
        sector = disk.capabilities.logical_block_bytes if can_choose else 512
    if sector <= 0:
        raise StorageError(StorageFault.INVALID, "the sector size is not above 0")
    size = -(-disk.size_bytes // sector) * sector
    return NewImage(wanted.format, wanted.kind, size, wanted.block_bytes, sector)


async def _copy(disk: BackingStore, copy: BackingStore) -> None:
    for name, work in (("copying", copy_disk), ("comparing", verify_copy)):
        with shown(name) as progress:
            await work(disk, copy, lambda done: progress(done, disk.size_bytes))
