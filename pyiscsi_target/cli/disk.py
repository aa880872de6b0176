"""The commands of `pyiscsi-target disk`: images that nobody serves at the time."""

import click

from .disk_convert import convert
from .disk_create import create
from .disk_info import info
from .disk_snapshots import delete_command, list_command, restore_command, snapshot_command


@click.group(short_help="Create, inspect, convert and repair disk images.")
def disk() -> None:
    """Disk images: VHD, VHDX and raw, fixed, dynamic and differencing.

    All commands but `info`, and those for snapshots with --config, want images not in use.
    """


disk.add_command(convert)
disk.add_command(create)
disk.add_command(info)
disk.add_command(snapshot_command)
disk.add_command(list_command)
disk.add_command(restore_command)
disk.add_command(delete_command)
