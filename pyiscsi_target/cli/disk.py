"""The commands of `pyiscsi-target disk`: images that nobody serves at the time."""

import click

from .disk_convert import convert
from .disk_create import create
from .disk_info import info


@click.group(short_help="Create, inspect, convert and repair disk images.")
def disk() -> None:
    """Disk images: VHD, VHDX and raw, fixed, dynamic and differencing.

    All commands but `info` want images that are not in use.
    """


disk.add_command(convert)
disk.add_command(create)
disk.add_command(info)
