"""Registrations and reservations for a person: plain values that a command line can print.

The same rows, whether a running server tells them or the stored documents do.
"""

from collections.abc import Collection
from typing import Any

from ..scsi.reservations import NexusKey, ReservationType, State
from ..scsi.transport_ids import device_name

TYPE_NAMES: dict[ReservationType, str] = {
    ReservationType.WRITE_EXCLUSIVE: "Write Exclusive",
    ReservationType.EXCLUSIVE_ACCESS: "Exclusive Access",
    ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: "Write Exclusive - Registrants Only",
    ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: "Exclusive Access - Registrants Only",
    ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS: "Write Exclusive - All Registrants",
    ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: "Exclusive Access - All Registrants",
}
"""As SPC-5 table 182 names them."""


def report(
    disk: str,
    state: State,
    connected: Collection[NexusKey] | None = None,
    reserved_by: str | None = None,
) -> dict[str, Any]:
    """One disk. `connected`: the nexuses with an open session, None where there is no server;
    `reserved_by`: the initiator port that holds it by a RESERVE of SPC-2."""
    reservation = state.reservation
    return {
        "disk": disk,
        "lost": state.lost,
        "generation": state.generation,
        "aptpl": state.aptpl,
        "type": TYPE_NAMES[reservation.type] if reservation is not None else None,
        "reserved_by": reserved_by,
        "registrations": [
            {
                "initiator": device_name(nexus[0]),
                "initiator_port": nexus[0],
                "target_port": nexus[1],
                "key": f"{key:#018x}",
                "holder": state.is_holder(nexus),
                "connected": None if connected is None else nexus in connected,
            }
            for nexus, key in sorted(state.registrations.items())
        ],
    }
