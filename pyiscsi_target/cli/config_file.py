"""Reading the config for a command: problems to stderr, one a line, and out with status 2."""

import sys
from pathlib import Path

import click

from ..server.config import Config, ConfigError, Problem, load_config, warnings_of

EXIT_CONFIG = 2

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
