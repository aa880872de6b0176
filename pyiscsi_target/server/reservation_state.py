"""Persistent reservations on the medium: one document for each disk, in the state store.

A disk's document hangs on its name in the config, as its identity does. With APTPL=1 everything
comes back, whatever happened. With APTPL=0 it comes back after a restart of the server, which is a
reset and not a loss of power, but not after a restart of the host.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..scsi.reservation_store import ReservationsNotSaved
from ..scsi.reservations import NOTHING, Reservation, ReservationType, State
from .logs import log_event
from .state_store import Document, StateError, StateReader, StateStore

_log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KEY_DIGITS = 16


def read_boot_id(path: Path = _BOOT_ID) -> str:
    """What changes when the host starts anew; empty where the host does not tell.

    There every start counts as one of the same boot: a reservation that is kept too long can be
    preempted, one that is lost cannot be found again.
    """
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


def document_name(disk: str) -> str:
    """The name of a disk's document: disks may have names that are no file names."""
    return f"reservations-{hashlib.sha256(disk.encode()).hexdigest()[:16]}"


class KnownReservations:
    """The reservations of all disks as they are stored, for looking at only."""

    def __init__(self, store: StateReader, boot_id: str) -> None:
        self._documents = store
        self._boot_id = boot_id

    def load(self, disk: str) -> State:
        """The state that a disk starts with: lost, and said loudly, where it cannot be known."""
        try:
            document = self._documents.load(document_name(disk))
            if document is None:
                return NOTHING
            state = _decode(document)
            same_boot = document["boot_id"] == self._boot_id
        except (StateError, KeyError, TypeError, ValueError) as error:
            log_event(
                _log,
                logging.ERROR,
                "reservations_lost",
                disk=disk,
                why=error if isinstance(error, StateError) else f"stored wrongly: {error!r}",
                hint="commands are refused until an initiator sends REPLACE LOST RESERVATION, or "
                f"{document_name(disk)}.json* in state_dir are removed and the server restarts",
            )
            return State(lost=True)
        if same_boot:
            return state
        if not state.aptpl:
            return NOTHING
        # PRGENERATION starts from zero after a loss of power (SPC-5 clause 6.16.2)
        return State(state.registrations, state.reservation, 0, state.aptpl)


class StoredReservations(KnownReservations):
    """The reservations of all disks, to be changed (a `ReservationStore`)."""

    def __init__(self, store: StateStore, boot_id: str) -> None:
        super().__init__(store, boot_id)
        self._store = store

    async def save(self, disk: str, state: State) -> None:
        """See `ReservationStore.save`."""
        document = {"disk": disk, "boot_id": self._boot_id, **_encode(state)}
        try:
            await asyncio.to_thread(self._store.save, document_name(disk), document)
        except StateError as error:
            raise ReservationsNotSaved(str(error)) from error


def _encode(state: State) -> Document:
    holder = state.reservation.holder if state.reservation is not None else None
    return {
        "generation": state.generation,
        "aptpl": state.aptpl,
        "type": int(state.reservation.type) if state.reservation is not None else None,
        "registrations": [
            {
                "initiator_port": nexus[0],
                "target_port": nexus[1],
                "key": f"{key:0{_KEY_DIGITS}x}",
                "holder": nexus == holder,
            }
            for nexus, key in state.registrations.items()
        ],
    }


def _decode(document: Mapping[str, Any]) -> State:
    registrations, holder = {}, None
    for entry in document["registrations"]:
        nexus = (str(entry["initiator_port"]), int(entry["target_port"]))
        registrations[nexus] = int(entry["key"], 16)
        if entry["holder"]:
            holder = nexus
    reservation = None
    if document["type"] is not None:
        reservation = Reservation(ReservationType(document["type"]), holder)
        if not registrations or reservation.held_by_all is not (holder is None):
            raise ValueError("the reservation has no holder")
    return State(registrations, reservation, int(document["generation"]), bool(document["aptpl"]))
