"""`pyiscsi-target check`: judge a config file and do nothing else."""

from pathlib import Path

import click

from ..server.config import Config
from .config_file import config_argument, load_or_exit


@click.command(short_help="Check a config file and start nothing.")
@config_argument
def check(config: Path) -> None:
    """Check CONFIG and start nothing: all its mistakes at once, exit status 2 if there are any."""
    loaded, warnings = load_or_exit(config)
    for warning in warnings:
        click.echo(f"{warning.describe(config)} [warning]", err=True)
    click.echo(f"{config}: OK: {_summary(loaded)}")


def _summary(config: Config) -> str:
    counts = (
        (len(config.targets), "target"),
        (len(config.disks), "disk"),
        (len(config.server.portals), "portal"),
    )
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
