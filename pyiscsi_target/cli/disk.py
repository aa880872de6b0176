"""The commands of `pyiscsi-target disk`: images that nobody serves at the time."""

import click

from .disk_convert import convert
from .disk_create import create
from .disk_info import info
from .disk_maintain import check, compact, merge, repair, resize


@click.group(short_help="Create, inspect, convert and repair disk images.")
def disk() -> None:
    """Disk images: VHD, VHDX and raw, fixed, dynamic and differencing.

    They must not be in use, but `info` and `check` may look at what others only read.
    """


for command in (check, compact, convert, create, info, merge, repair, resize):
    disk.add_command(command)
