"""What a target answered to a SCSI command."""

from dataclasses import dataclass
from typing import Self

from ..iscsi.initiator_events import CommandFinished
from ..scsi.task import Status
from .sense import Sense

_STATUSES = frozenset(Status)


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a SCSI command.

    `status` is the SAM-6 status, `data` the data-in that came, `raw_sense` the sense data of a
    CHECK CONDITION and `sense` what it says. `residual_bytes` is positive for an overflow (the
    target had more than was asked for), negative for an underflow. `response` is that of the SCSI
    Response (RFC 7143 section 11.4.3): anything but 0 is a target failure, and `status` says
    nothing.
    """

    status: int
    data: bytes = b""
    raw_sense: bytes = b""
    residual_bytes: int = 0
    response: int = 0

    @classmethod
    def of(cls, event: CommandFinished) -> Self:
        """The value of the engine's event."""
        return cls(
            event.status,
            bytes(event.data),
            event.sense,
            event.residual_bytes,
            event.response,
        )

    @property
    def good(self) -> bool:
        """Whether the command was done."""
        return self.status == Status.GOOD and not self.response

    @property
    def sense(self) -> Sense | None:
        """The sense data, decoded; None where there is none that can be read."""
        return Sense.decode(self.raw_sense)

    def __str__(self) -> str:
        if self.response:
            return f"target failure, response {self.response:02X}h"
        name = (
            Status(self.status).name if self.status in _STATUSES else f"status {self.status:02X}h"
        )
        sense = self.sense
        return name.replace("_", " ") + (f", {sense}" if sense is not None else "")
