"""What the initiator's engine tells its owner."""

from dataclasses import dataclass

from .keys import Parameters
from .text import Pairs, ProtocolError


@dataclass(slots=True)
class LoginFinished:
    """The full feature phase is reached."""

    tsih: int
    parameters: Parameters
    declared: dict[str, str]


@dataclass(slots=True)
class LoginFailed:
    """The target refused; `status` is class and detail (RFC 7143 section 11.13.5)."""

    status: int
    target_address: str | None


@dataclass(slots=True)
class CommandFinished:
    """A SCSI command's end. `residual_bytes` is negative for an underflow, positive for overflow.

    `data` is what arrived of the data-in, `sense` the sense data without its length field.
    """

    itt: int
    response: int
    status: int
    data: memoryview
    sense: bytes
    residual_bytes: int


@dataclass(slots=True)
class PingReturned:
    """The NOP-In that answers a NOP-Out of ours."""

    itt: int
    data: bytes


@dataclass(slots=True)
class TextFinished:
    """A whole Text Response."""

    itt: int
    pairs: Pairs


@dataclass(slots=True)
class TaskManagementFinished:
    itt: int
    response: int


@dataclass(slots=True)
class LogoutFinished:
    itt: int
    response: int
    time2wait_s: int
    time2retain_s: int


@dataclass(slots=True)
class AsyncMessageReceived:
    """Section 11.9; the parameters' meaning depends on `event`."""

    event: int
    lun: int
    parameters: tuple[int, int, int]
    data: bytes


@dataclass(slots=True)
class RequestRejected:
    """Section 11.17; `itt` is that of the header that was rejected."""

    reason: int
    itt: int
    header: bytes


@dataclass(slots=True)
class TargetFailed:
    """The target broke the protocol: the connection is of no more use."""

    error: ProtocolError


InitiatorEvent = (
    LoginFinished
    | LoginFailed
    | CommandFinished
    | PingReturned
    | TextFinished
    | TaskManagementFinished
    | LogoutFinished
    | AsyncMessageReceived
    | RequestRejected
    | TargetFailed
)
