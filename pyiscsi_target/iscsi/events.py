"""What the target's engine tells its owner. `transfer.Command` is one of them: ready to execute."""

from dataclasses import dataclass

from .constants import LogoutReason
from .login import Agreement
from .text import ProtocolError
from .transfer import Command


@dataclass(slots=True)
class SessionRequested:
    """A login is agreed on; answer with `accept_session` or `refuse_session`."""

    agreement: Agreement


@dataclass(slots=True)
class LoginFailed:
    """A login was refused; the connection ends when its answer is sent."""

    initiator_name: str
    error: ProtocolError


@dataclass(slots=True)
class TransferRequested:
    """A command's data is not all here; answer with `solicit` or `respond`.

    When all of it has arrived the command itself follows as an event.
    """

    command: Command


@dataclass(slots=True)
class TransferFailed:
    """A command for which data was solicited has ended: some of its data came damaged."""

    command: Command


@dataclass(slots=True)
class TaskManagementRequested:
    """Answer with `task_management_response`."""

    itt: int
    function: int
    lun: int
    referenced_task_tag: int
    credit: int


@dataclass(slots=True)
class LogoutRequested:
    """The initiator logs out; answer with `accept_logout` after all that was answered before."""

    itt: int
    reason: LogoutReason


@dataclass(slots=True)
class PingAnswered:
    """The initiator answered our NOP-In."""


@dataclass(slots=True)
class ConnectionFailed:
    """The peer broke the protocol; the connection ends when what is queued is sent."""

    error: ProtocolError


Event = (
    Command
    | SessionRequested
    | LoginFailed
    | TransferRequested
    | TransferFailed
    | TaskManagementRequested
    | LogoutRequested
    | PingAnswered
    | ConnectionFailed
)
