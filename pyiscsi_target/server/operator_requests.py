"""What an operator can ask of a running server, through the control socket."""

import asyncio
import logging
from collections.abc import Mapping

from ..scsi.logical_unit import LogicalUnit
from ..scsi.reservation_store import ReservationsNotSaved
from ..storage.base import StorageError
from .control import ControlError, Handler, Json
from .logs import log_event
from .reservation_report import report

SIZE_MAXIMUM_BYTES = (1 << 63) - 1  # what an offset in a file can be

_log = logging.getLogger(__name__)


class OperatorRequests:
    """Requests by name, over the disks of a server."""

    def __init__(self, units: Mapping[str, LogicalUnit], changing: asyncio.Lock) -> None:
        """`changing`: held while disks change, which only one request may do."""
        self._units = units
        self._changing = changing
        self.handlers: Mapping[str, Handler] = {
            "reservations": self._reservations,
            "purge": self._purge,
            "resize": self._resize,
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

    async def _resize(self, request: Json) -> Json:
        """Give a `disk` the size `size_bytes`, sessions or not; hosts hear of it (2A/09)."""
        unit = self._unit(request.get("disk"))
        size_bytes = request.get("size_bytes")
        if not isinstance(size_bytes, int) or size_bytes <= 0 or size_bytes % unit.block_size:
            raise ControlError(
                f"disk {unit.name!r}: a size is a multiple of {unit.block_size} bytes,"
                f" not {size_bytes}"
            )
        if size_bytes > SIZE_MAXIMUM_BYTES:
            raise ControlError(f"{size_bytes} bytes are more than a file can have")
        if unit.read_only:
            raise ControlError(f"disk {unit.name!r} is read only")
        before_bytes = unit.store.size_bytes
        try:
            async with self._changing:
                await unit.resize(size_bytes)
        except StorageError as error:
            kept = unit.store.size_bytes == before_bytes
            what = "keeps its size" if kept else "has its new size, perhaps not for good"
            raise ControlError(f"disk {unit.name!r} {what}: {error}") from error
        log_event(_log, logging.INFO, "resized", disk=unit.name, size_bytes=size_bytes)
        return {"disk": unit.name, "before_bytes": before_bytes, "size_bytes": size_bytes}

    def _unit(self, name: object) -> LogicalUnit:
        unit = self._units.get(str(name))
        if unit is None:
            known = ", ".join(self._units)
            raise ControlError(f"no disk {name!r} is served; there are: {known}")
        return unit


def _report(name: str, unit: LogicalUnit) -> Json:
    connected = {nexus.key for nexus in unit.attentions.nexuses}
    holder = unit.reserved_by
    return report(
        name, unit.reservations, connected, holder.initiator_port_name if holder else None
    )
