"""The commands of `pyiscsi-target disk`."""

import click

from .disk_convert import convert
from .disk_create import create
from .disk_import import import_command
from .disk_info import info
from .disk_maintain import check, compact, merge, repair
from .disk_resize import resize
from .disk_snapshots import delete_command, list_command, restore_command, snapshot_command

_COMMANDS: tuple[click.Command, ...] = (
    create,
    info,
    convert,
    resize,
    check,
    repair,
    compact,
    merge,
    import_command,
    snapshot_command,
    list_command,
    restore_command,
    delete_command,
)


@click.group(short_help="Create, inspect, convert and repair disk images.")
def disk() -> None:
    """Disk images: VHD, VHDX and raw, fixed, dynamic and differencing.

    They must not be in use, except for `resize` and the commands for snapshots with --config;
    `info` and `check` may look at what others only read.
    """


for command in _COMMANDS:
    disk.add_command(command)
