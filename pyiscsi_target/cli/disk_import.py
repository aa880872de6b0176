"""`pyiscsi-target disk import`: an image that exists becomes a disk of a config."""

import sys
from pathlib import Path

import click
from tomlkit import TOMLDocument

from ..server.config import Config, ConfigError
from ..server.config_values import format_size
from ..storage.open import open_image
from .config_edit import add_disk, add_lun, disk_name, edit_config
from .config_file import EXIT_CONFIG, load_or_exit
from .disk_options import EXIT_FAILED, ImagePath, failing_softly


@click.command("import", short_help="Put an image that exists into a config.")
@click.argument("path", type=ImagePath())
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The config."
)
@click.option("--name", help="Of the disk; made of the file's name by default.")
@click.option("--target", help="Serve it as a LUN of this target; by default of the only one.")
@click.option("--lun", type=click.IntRange(0, 255), help="Its LUN; by default the next free one.")
def import_command(
    path: Path, config: Path, name: str | None, target: str | None, lun: int | None
) -> None:
    """Write the stanza that serves the image at PATH into the config, and give it a LUN.

    The image is opened to see that it is sound, and not changed. It is served from the next start
    of the server on.
    """
    loaded, _ = load_or_exit(config)
    with failing_softly():
        image = open_image(path, read_only=True)
        size_bytes, sector_bytes = image.size_bytes, image.capabilities.logical_block_bytes
        image.close_blocking()
    disk = name or disk_name(path)
    chosen = _target(loaded, config, target)
    number = _lun(loaded, config, chosen, lun)
    if disk in loaded.disks:
        _refuse(f"{config}: disks.{disk}: is there already; choose another --name")

    def edit(document: TOMLDocument) -> None:
        add_disk(document, disk, _spelt(path, config), sector_bytes)
        if chosen is not None:
            add_lun(document, chosen, number, disk)

    try:
        edit_config(config, edit)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem.describe(config), err=True)
        _refuse(f"{config}: nothing was changed")
    except OSError as error:
        _refuse(f"{config}: {error.strerror or error}", EXIT_FAILED)
    where = f"LUN {number} of {chosen}" if chosen is not None else "no LUN yet: there is no target"
    click.echo(f"{config}: disk {disk}, {format_size(size_bytes)}, {where}")


def _refuse(message: str, status: int = EXIT_CONFIG) -> None:
    click.echo(message, err=True)
    sys.exit(status)


def _target(config: Config, path: Path, wanted: str | None) -> str | None:
    names = list(config.targets)
    if wanted is None and len(names) > 1:
        _refuse(f"{path}: has {len(names)} targets; choose one with --target")
    if wanted is not None and wanted not in names:
        _refuse(f"{path}: targets.{wanted}: there is no such target; there are: {', '.join(names)}")
    return wanted or next(iter(names), None)


def _lun(config: Config, path: Path, target: str | None, wanted: int | None) -> int:
    taken = config.targets[target].luns if target is not None else {}
    if wanted is None:
        return next(number for number in range(256) if number not in taken)
    if wanted in taken:
        _refuse(f"{path}: LUN {wanted} of {target} is disk {taken[wanted]!r} already")
    return wanted


def _spelt(image: Path, config: Path) -> str:
    """The image's path as the config should have it: relative where it lies below the config."""
    absolute, folder = image.absolute(), config.absolute().parent
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
