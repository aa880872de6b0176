"""`pyiscsi-target disk snapshot` and its kin: what disks held at one moment, and back to it.

With a config the disks are named as there, and a server that runs does the work without ending a
session; without one they are files that nobody serves.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from ..server.config_values import format_size
from ..server.control import ControlError, Json, NotRunning, ask
from ..server.snapshot_requests import describe
from ..storage.base import StorageError
from ..storage.lock import locked
from ..storage.open import image_path, open_image
from ..storage.snapshots import (
    delete_snapshot,
    existing_snapshot,
    list_snapshots,
    restore_snapshot,
    settle,
    take_snapshot,
)
from .config_edit import resized
from .config_file import EXIT_CONFIG, load_or_exit

EXIT_FAILED = 1

_config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Name disks as in this config; its server, if it runs, does the work.",
)
_disks = click.argument("disks", nargs=-1, required=True, metavar="DISK...")
_snapshot = click.argument("snapshot", metavar="SNAPSHOT")


@click.command("snapshot", short_help="Keep what disks hold now, at one instant.")
@_snapshot
@_disks
@_config
def snapshot_command(snapshot: str, disks: tuple[str, ...], config: Path | None) -> None:
    """Keep what every DISK holds now, at one instant for all, as SNAPSHOT.

    VHD and VHDX: an instant, and from then on the disk is a child of its snapshot. Raw files are
    copied, sharing blocks where the file system can.
    """
    _change("snapshot", "taken", take_snapshot, snapshot, disks, config)


@click.command("restore", short_help="Put disks back to a snapshot.")
@_snapshot
@_disks
@_config
@click.option("--force", is_flag=True, help="Even while sessions use the disks: they are told.")
def restore_command(
    snapshot: str, disks: tuple[str, ...], config: Path | None, force: bool
) -> None:
    """Make every DISK hold again what it held when SNAPSHOT was taken.

    What it holds now is gone; the snapshot stays. Of a disk in use only with --force, and whoever
    uses it must read it anew. With --config, the `size` in it follows.
    """
    _change("restore", "restored", restore_snapshot, snapshot, disks, config, force=force)
    if config is not None:
        with _reported():
            _follow_sizes(config, snapshot, _images(disks, config))


def _follow_sizes(config: Path, snapshot: str, images: dict[str, Path]) -> None:
    """A disk that was resized since has the size of its snapshot again."""
    loaded, _ = load_or_exit(config)
    for disk, image in images.items():
        restored = open_image(existing_snapshot(image, snapshot), read_only=True)
        restored.close_blocking()
        configured = loaded.disks[disk].size_bytes
        if configured is not None and configured != restored.size_bytes:
            resized(config, disk, restored.size_bytes)


@click.command("delete-snapshot", short_help="Forget a snapshot of disks.")
@_snapshot
@_disks
@_config
def delete_command(snapshot: str, disks: tuple[str, ...], config: Path | None) -> None:
    """Forget SNAPSHOT of every DISK; the disks stay as they are."""
    _change("delete-snapshot", "deleted", delete_snapshot, snapshot, disks, config)


@click.command("snapshots", short_help="List the snapshots of disks.")
@_disks
@_config
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(disks: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """List the snapshots of every DISK, oldest first."""
    images = _images(disks, config)
    with _reported():
        found = {
            disk: [describe(one) for one in list_snapshots(image)] for disk, image in images.items()
        }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for disk, snapshots in found.items():
        click.echo(f"{disk}: {'no snapshots' if not snapshots else ''}".rstrip())
        for one in snapshots:
            taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["taken_s"]))
            click.echo(f"  {one['name']}  {taken}  {format_size(one['file_bytes'])}")


def _change(
    request: str,
    done: str,
    change: Callable[[Path, str], object],
    snapshot: str,
    disks: Sequence[str],
    config: Path | None,
    **arguments: object,
) -> None:
    """Have the server do it, or do it to the files; then say so."""
    images = _images(disks, config)
    with _reported():
        if config is None or not _done_by_server(config, request, snapshot, disks, arguments):
            _change_files(change, snapshot, images)
    for disk in disks:
        click.echo(f"{disk}: snapshot {snapshot} {done}")


def _done_by_server(
    config: Path, request: str, snapshot: str, disks: Sequence[str], arguments: Json
) -> bool:
    """False where no server runs."""
    loaded, _ = load_or_exit(config)
    directory = loaded.server.state_dir
    try:
        ask(directory, request, snapshot=snapshot, disks=list(disks), **arguments)
    except NotRunning:
        return False
    return True


def _change_files(
    change: Callable[[Path, str], object], snapshot: str, images: dict[str, Path]
) -> None:
    """Nobody writes to any of the files while one of them changes: together they are one moment."""
    if change is take_snapshot:
        for image in images.values():
            settle(image)
    with ExitStack() as locks:
        for image in images.values() if change is not delete_snapshot else ():
            locks.enter_context(locked(image, shared=True))  # a merge locks it for itself
        if change is not take_snapshot:
            for image in images.values():
                existing_snapshot(image, snapshot)
        for image in images.values():
            change(image, snapshot)


def _images(disks: Sequence[str], config: Path | None) -> dict[str, Path]:
    """The files of the disks; ends the process where the config has no such disk."""
    if config is None:
        return {disk: Path(disk) for disk in disks}
    loaded, _ = load_or_exit(config)
    images = {}
    for disk in disks:
        known = loaded.disks.get(disk)
        image = image_path(known.path, config.absolute().parent) if known is not None else None
        if image is None:
            why = "has no such disk" if known is None else "is in memory, so it has no snapshots"
            click.echo(f"{config}: disks.{disk}: {why}", err=True)
            sys.exit(EXIT_CONFIG)
        images[disk] = image
    return images


@contextmanager
def _reported() -> Iterator[None]:
    """What goes wrong is one line, and exit status 1."""
    try:
        yield
    except (ControlError, StorageError) as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILED)
