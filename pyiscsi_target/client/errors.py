"""What can go wrong for a client. No message ever holds a secret."""

from ..iscsi.constants import LoginStatus, RejectReason
from .address import Portal
from .result import Result

# The initiator has to go on at the TargetAddress (RFC 7143 section 11.13.5).
MOVED = {0x0101: "target moved temporarily", 0x0102: "target moved permanently"}

_LOGIN_STATUSES = MOVED | {
    status.value: status.name.replace("_", " ").lower() for status in LoginStatus
}
_REJECT_REASONS = {reason.value: reason.name.replace("_", " ").lower() for reason in RejectReason}


class ClientError(Exception):
    """Anything that this package raises on purpose."""


class ConnectionLost(ClientError):
    """There is no connection any more, or there never was one: `portal` and `reason` say why.

    What was under way may or may not have been done by the target.
    """

    def __init__(self, portal: Portal, reason: str) -> None:
        super().__init__(f"{portal}: {reason}")
        self.portal = portal
        self.reason = reason


class ProtocolViolated(ConnectionLost):
    """The target sent what RFC 7143 does not allow, or could not prove who it is."""


class LoginRefused(ClientError):
    """The target refused the login; `status` is class and detail (RFC 7143 section 11.13.5)."""

    def __init__(self, portal: Portal, status: int, target_address: str | None = None) -> None:
        name = _LOGIN_STATUSES.get(status, "unknown status")
        super().__init__(f"{portal}: login refused, status {status:04X}h: {name}")
        self.portal = portal
        self.status = status
        self.target_address = target_address


class TimedOut(ClientError, TimeoutError):
    """The target did not answer in time. It may still do what it was asked for."""


class RequestRejected(ClientError):
    """The target answered with a Reject PDU; `reason` is its code (RFC 7143 section 11.17.1)."""

    def __init__(self, portal: Portal, reason: int) -> None:
        name = _REJECT_REASONS.get(reason, "unknown reason")
        super().__init__(f"{portal}: request rejected, reason {reason:02X}h: {name}")
        self.reason = reason


class TaskAborted(ClientError):
    """A task management request of this session ended the command, which gets no answer."""


class BadAnswer(ClientError):
    """GOOD status, but data that the standard does not allow."""


class CommandFailed(ClientError):
    """A command ended in another status than GOOD; `result` is the whole answer."""

    def __init__(self, command: str, lun: int, result: Result) -> None:
        super().__init__(f"{command} to LUN {lun}: {result}")
        self.command = command
        self.lun = lun
        self.result = result
