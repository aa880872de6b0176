"""What an operator can ask of a running server, through the control socket."""

from collections.abc import Mapping

from ..scsi.logical_unit import LogicalUnit
from ..scsi.reservation_store import ReservationsNotSaved
from .control import ControlError, Handler, Json
from .reservation_report import report


class OperatorRequests:
    """Requests by name, over the disks of a server."""

    def __init__(self, units: Mapping[str, LogicalUnit]) -> None:
        self._units = units
        self.handlers: Mapping[str, Handler] = {
            "reservations": self._reservations,
            "purge": self._purge,
        }

    async def _reservations(self, request: Json) -> Json:
        """Every disk's registrations and reservation."""
        return {"disks": [_report(name, unit) for name, unit in self._units.items()]}

    async def _purge(self, request: Json) -> Json:
        """Remove an `initiator`'s registrations from all disks; how many there were, by disk."""
        initiator = str(request.get("initiator", ""))
        purged: dict[str, int] = {}
        for name, unit in self._units.items():
            try:
                count = await unit.purge_registrations(initiator)
            except ReservationsNotSaved as error:
                done = ", ".join(purged) or "no disk"
                raise ControlError(f"disk {name!r}: {error} (purged from: {done})") from error
            if count:
                purged[name] = count
        return {"purged": purged}


def _report(name: str, unit: LogicalUnit) -> Json:
    connected = {nexus.key for nexus in unit.attentions.nexuses}
    holder = unit.reserved_by
    return report(
        name, unit.reservations, connected, holder.initiator_port_name if holder else None
    )
