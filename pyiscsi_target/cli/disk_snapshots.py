"""`pyiscsi-target disk snapshot` and its kin: what disks held at one moment, and back to it.

With a config the disks are named as there, and a server that runs does the work without ending a
session; without one they are files that nobody serves.
"""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import click

from ..server.config import Config
from ..server.config_values import format_size
from ..server.control import ControlError, Json, NotRunning, ask
from ..server.snapshot_requests import describe
from ..storage.base import StorageError
from ..storage.lock import locked
from ..storage.open import open_image
from ..storage.snapshot_deletion import deletable_snapshot, delete_snapshot
from ..storage.snapshots import (
    existing_snapshot,
    list_snapshots,
    require_unused,
    restore_snapshot,
    settle,
    take_snapshot,
)
from .config_edit import resized
from .config_file import disks_config, images_of, load_or_exit
from .disk_options import EXIT_FAILED

_disks = click.argument("disks", nargs=-1, required=True, metavar="DISK...")
_snapshot = click.argument("snapshot", metavar="SNAPSHOT")


@click.command("snapshot", short_help="Keep what disks hold now, at one instant.")
@_snapshot
@_disks
@disks_config
def snapshot_command(snapshot: str, disks: tuple[str, ...], config: Path | None) -> None:
    """Keep what every DISK holds now, at one instant for all, as SNAPSHOT.

    Images that were made of DISK (create --parent) do not fit it any more, for SNAPSHOT is what
    they were made of; nor once that is deleted.

    VHD and VHDX: an instant, and from then on the disk is a child of its snapshot. Raw files are
    copied, sharing blocks where the file system can.
    """
    _change("snapshot", "taken", take_snapshot, snapshot, disks, config)


@click.command("restore", short_help="Put disks back to a snapshot.")
@_snapshot
@_disks
@disks_config
@click.option("--force", is_flag=True, help="Even while sessions use the disks: they are told.")
def restore_command(
    snapshot: str, disks: tuple[str, ...], config: Path | None, force: bool
) -> None:
    """Make every DISK hold again what it held when SNAPSHOT was taken.

    What it holds now is gone; the snapshot stays. A disk in use needs --force, and whoever uses it
    must read it anew. With --config, the `size` in it follows.
    """
    named = _change("restore", "restored", restore_snapshot, snapshot, disks, config, force=force)
    if config is not None and named.config is not None:
        with _reported():
            _follow_sizes(config, named.config, snapshot, named.images)


def _follow_sizes(path: Path, config: Config, snapshot: str, images: dict[str, Path]) -> None:
    """A disk that was resized since has the size of its snapshot again."""
    for disk, image in images.items():
        restored = open_image(existing_snapshot(image, snapshot), read_only=True)
        restored.close_blocking()
        configured = config.disks[disk].size_bytes
        if configured is not None and configured != restored.size_bytes:
            resized(path, disk, restored.size_bytes)


@click.command("delete-snapshot", short_help="Forget a snapshot of disks.")
@_snapshot
@_disks
@disks_config
def delete_command(snapshot: str, disks: tuple[str, ...], config: Path | None) -> None:
    """Forget SNAPSHOT of every DISK; the disks and their other snapshots stay as they are.

    Of VHD and VHDX, what is made of the snapshot is merged with it. Cut short, do it again.
    """
    _change("delete-snapshot", "deleted", delete_snapshot, snapshot, disks, config)


@click.command("snapshots", short_help="List the snapshots of disks.")
@_disks
@disks_config
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(disks: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """List the snapshots of every DISK, oldest first."""
    images = _named(disks, config).images
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
            state = "" if one["whole"] else "  (deletion cut short: delete it again)"
            click.echo(f"  {one['name']}  {taken}  {format_size(one['file_bytes'])}{state}")


def _change(
    request: str,
    done: str,
    change: Callable[[Path, str], object],
    snapshot: str,
    disks: Sequence[str],
    config: Path | None,
    **arguments: object,
) -> "_Named":
    """Have the server do it, or do it to the files; then say so."""
    named = _named(disks, config)
    with _reported():
        if not _done_by_server(named.config, request, snapshot, disks, arguments):
            _change_files(change, snapshot, named.images)
    for disk in disks:
        click.echo(f"{disk}: snapshot {snapshot} {done}")
    return named


def _done_by_server(
    config: Config | None, request: str, snapshot: str, disks: Sequence[str], arguments: Json
) -> bool:
    """False where no server runs."""
    if config is None:
        return False
    try:
        ask(config.server.state_dir, request, snapshot=snapshot, disks=list(disks), **arguments)
    except NotRunning:
        return False
    return True


def _change_files(
    change: Callable[[Path, str], object], snapshot: str, images: dict[str, Path]
) -> None:
    """Nobody writes to any of the files while one of them changes: together they are one moment."""
    if change is take_snapshot:
        _take_all(snapshot, images.values())
        return
    with ExitStack() as locks:
        for image in images.values() if change is not delete_snapshot else ():
            locks.enter_context(locked(image))  # a merge locks it for itself
        require = deletable_snapshot if change is delete_snapshot else existing_snapshot
        for image in images.values():
            require(image, snapshot)
        for image in images.values():
            change(image, snapshot)


def _take_all(snapshot: str, images: Collection[Path]) -> None:
    """Of all or of none."""
    for image in images:
        require_unused(image, snapshot)
        settle(image)
    taken: list[Path] = []
    try:
        with ExitStack() as locks:
            for image in images:
                locks.enter_context(locked(image, shared=True))
            for image in images:
                take_snapshot(image, snapshot)
                taken.append(image)
    except StorageError:
        for image in taken:
            delete_snapshot(image, snapshot)
        raise


class _Named(NamedTuple):
    """The files of the disks that were named, and the config where they are those of one."""

    images: dict[str, Path]
    config: Config | None


def _named(disks: Sequence[str], path: Path | None) -> _Named:
    """Ends the process where the config at `path` has no such disk."""
    if path is None:
        config, images = None, {disk: Path(disk) for disk in disks}
    else:
        config, _ = load_or_exit(path)
        images = images_of(config, path, disks, of_memory=", so it has no snapshots")
    images = {disk: image.resolve() for disk, image in images.items()}  # where snapshots are
    if len(set(images.values())) < len(disks):
        raise click.UsageError("a disk is named twice")
    return _Named(images, config)


@contextmanager
def _reported() -> Iterator[None]:
    """What goes wrong is one line, and exit status 1."""
    try:
        yield
    except (ControlError, StorageError) as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILED)
