"""`pyiscsi-target reservations`: who is registered on which disk, and who holds it.

Asks the running server, or reads what is stored where none runs.
"""

import asyncio
import json
import logging
import sys
from pathlib import Path

import click
from rich.console import Console

from ..scsi.reservations import purge
from ..server import logs
from ..server.config import Config
from ..server.control import ControlError, Json, NotRunning, ask
from ..server.reservation_report import report
from ..server.reservation_state import KnownReservations, StoredReservations, read_boot_id
from ..server.state_store import StateError, StateReader, StateStore
from .config_file import config_argument, load_or_exit
from .reservation_table import print_reservations

EXIT_FAILED = 1


@click.command(short_help="List persistent reservations, and purge orphans.")
@config_argument
@click.option(
    "--purge",
    "purged",
    metavar="INITIATOR",
    help="Remove the registrations of an initiator (IQN), or of one of its ports"
    " (IQN,i,0xISID), from all disks; what it still has under way is aborted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reservations(config: Path, purged: str | None, as_json: bool) -> None:
    """List the registrations and reservations of each disk of CONFIG.

    Works while the server runs and while it does not. Exit status 1 where they cannot be known or
    changed, or where there is nothing to purge; 2 where CONFIG has mistakes.
    """
    loaded, _ = load_or_exit(config)
    logs.configure("kv", logging.WARNING)  # stored documents that are damaged say why
    try:
        if purged is not None:
            _print_purged(_purge(loaded, purged), purged, as_json=as_json)
        else:
            _print(*_list(loaded), as_json=as_json)
    except (ControlError, StateError) as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _list(config: Config) -> tuple[list[Json], bool]:
    """A report for each disk, and whether a server runs."""
    try:
        return ask(config.server.state_dir, "reservations")["disks"], True
    except NotRunning:
        known = KnownReservations(StateReader(config.server.state_dir), read_boot_id())
        return [report(disk, known.load(disk)) for disk in config.disks], False


def _purge(config: Config, initiator: str) -> dict[str, int]:
    """How many registrations went, by disk."""
    directory = config.server.state_dir
    try:
        purged: dict[str, int] = ask(directory, "purge", initiator=initiator)["purged"]
        return purged
    except NotRunning:
        if not directory.is_dir():
            return {}
    store = StateStore(directory)
    try:
        return asyncio.run(
            _purge_stored(StoredReservations(store, read_boot_id()), config, initiator)
        )
    finally:
        store.close()


async def _purge_stored(
    stored: StoredReservations, config: Config, initiator: str
) -> dict[str, int]:
    purged = {}
    for disk in config.disks:
        result = purge(stored.load(disk), initiator)
        if result.aborts:
            await stored.save(disk, result.state)
            purged[disk] = len(result.aborts)
    return purged


def _print(disks: list[Json], running: bool, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"running": running, "disks": disks}, indent=2))
    else:
        print_reservations(disks, running, Console())


def _print_purged(purged: dict[str, int], initiator: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"purged": purged}, indent=2))
    for disk, count in purged.items():
        if not as_json:
            plural = "" if count == 1 else "s"
            click.echo(f"{disk}: {count} registration{plural} of {initiator} removed")
    if not purged:
        raise ControlError(f"{initiator} is registered on no disk")
