"""The command line: `pyiscsi-target serve`, `pyiscsi-target check`. Knows no protocol."""

import click

from .. import __version__
from .check import check
from .demo import demo
from .disk import disk
from .reservations import reservations
from .serve import serve
from .validate import validate_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyiscsi-target")
def main() -> None:
    """An iSCSI target in pure Python: shared disks for cluster labs."""


main.add_command(check)
main.add_command(demo)
main.add_command(disk)
main.add_command(reservations)
main.add_command(serve)
main.add_command(validate_command)
