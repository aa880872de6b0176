"""An asyncio iSCSI initiator, for scripts that drive any target: the public API of the client.

::

    from pyiscsi_target.client import Portal, Reservations, ReservationType, Session

    async with Session.connect(Portal("127.0.0.1"), "iqn.2026-11.lab.example:cluster") as session:
        await session.ready(0)                       # takes the unit attentions of a new nexus
        await session.write(0, 100, bytes(4096), fua=True)
        reservations = Reservations(session, 0)
        await reservations.register(0x1)
        await reservations.reserve(0x1, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)

It keeps what RFC 7143 asks of an initiator with one connection a session at error recovery level 0.
Nothing is retried and no unit attention is swallowed: what the target says is what you get.
"""

from ..iscsi.chap import Credentials
from ..iscsi.constants import AsyncEvent, TaskManagement, TaskManagementResponse
from ..iscsi.initiator_events import AsyncMessageReceived
from ..iscsi.keys import Limits, Parameters
from ..scsi.reservations import ReservationType
from ..scsi.task import Status, TaskAttribute
from .address import Portal, TargetAddress, TargetUrl, parse_url
from .answers import Capacity
from .chap_file import read_chap_file
from .command import Command
from .discovery import DiscoveredTarget, discover
from .errors import (
    BadAnswer,
    ClientError,
    CommandFailed,
    ConnectionLost,
    LoginRefused,
    ProtocolViolated,
    RequestRejected,
    TaskAborted,
    TimedOut,
)
from .initiator import Initiator
from .reservations import HeldReservation, Registration, ReservationCapabilities, Reservations
from .result import Result
from .sense import Sense
from .session import Session

__all__ = [
    "AsyncEvent",
    "AsyncMessageReceived",
    "BadAnswer",
    "Capacity",
    "ClientError",
    "Command",
    "CommandFailed",
    "ConnectionLost",
    "Credentials",
    "DiscoveredTarget",
    "HeldReservation",
    "Initiator",
    "Limits",
    "LoginRefused",
    "Parameters",
    "Portal",
    "ProtocolViolated",
    "Registration",
    "RequestRejected",
    "ReservationCapabilities",
    "ReservationType",
    "Reservations",
    "Result",
    "Sense",
    "Session",
    "Status",
    "TargetAddress",
    "TargetUrl",
    "TaskAborted",
    "TaskAttribute",
    "TaskManagement",
    "TaskManagementResponse",
    "TimedOut",
    "discover",
    "parse_url",
    "read_chap_file",
]
