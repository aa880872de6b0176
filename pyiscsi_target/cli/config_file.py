"""Reading the config for a command: problems to stderr, one a line, and out with status 2."""

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from ..server.config import Config, ConfigError, Problem, load_config, warnings_of
from ..storage.open import image_path

EXIT_CONFIG = 2

disks_config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Name disks as in this config; its server, if it runs, does the work.",
)
config_argument = click.argument("config", type=click.Path(path_type=Path, dir_okay=True))


def load_or_exit(path: Path) -> tuple[Config, list[Problem]]:
    """The config and its warnings; ends the process where the file cannot be served."""
    try:
        config = load_config(path)
        return config, warnings_of(config, path)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem.describe(error.path), err=True)
        count = len(error.problems)
        click.echo(f"{count} mistake{'s' if count > 1 else ''}; nothing was started.", err=True)
        sys.exit(EXIT_CONFIG)


def images_of(
    config: Config, path: Path, disks: Iterable[str], *, of_memory: str
) -> dict[str, Path]:
    """The files that disks of the config at `path` are in; ends the process where one has none.

    `of_memory` says what follows from a disk being in memory.
    """
    images = {}
    for disk in disks:
        known = config.disks.get(disk)
        image = image_path(known.path, path.absolute().parent) if known is not None else None
        if image is None:
            why = "has no such disk" if known is None else f"is in memory{of_memory}"
            click.echo(f"{path}: disks.{disk}: {why}", err=True)
            sys.exit(EXIT_CONFIG)
        images[disk] = image
    return images
