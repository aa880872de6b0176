"""`pyiscsi-target disk resize`: of a file that nobody uses, or of a disk that is being served."""

import asyncio
import sys
from pathlib import Path

import click

from ..server.config_values import format_size
from ..server.control import ControlError, NotRunning, ask
from ..storage.open import open_image
from .config_edit import resized
from .config_file import disks_config, images_of, load_or_exit
from .disk_options import EXIT_FAILED, SIZE, failing_softly


@click.command(short_help="Make a disk larger, or smaller where its end is empty.")
@click.argument("disk")
@click.argument("size", type=SIZE)
@disks_config
def resize(disk: str, size: int, config: Path | None) -> None:
    """Give DISK, an image file, a new SIZE.

    What is added is zeroes. A disk becomes smaller only where nothing is in what goes. Children of
    it do not fit any more. With --config, DISK is one of the config: sessions go on, hosts are told
    (capacity data has changed), and the `size` in the config follows.
    """
    try:
        if config is None:
            _resize_file(Path(disk), size)
        else:
            _resize_configured(config, disk, size)
    except ControlError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILED)
    click.echo(f"{disk}: {format_size(size)}")


def _resize_file(path: Path, size_bytes: int) -> None:
    with failing_softly():
        asyncio.run(_resize(path, size_bytes))


async def _resize(path: Path, size_bytes: int) -> None:
    disk = open_image(path, read_only=False)
    try:
        await disk.resize(size_bytes)
    finally:
        await disk.close()


def _resize_configured(config: Path, disk: str, size_bytes: int) -> None:
    loaded, _ = load_or_exit(config)
    images = images_of(loaded, config, [disk], of_memory="; change its size in the file")
    try:
        ask(loaded.server.state_dir, "resize", disk=disk, size_bytes=size_bytes)
    except NotRunning:
        _resize_file(images[disk], size_bytes)
    resized(config, disk, size_bytes)
