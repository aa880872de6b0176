"""Requests to buffers: CmdSN, the target's window, and what is sent in answer to an R2T.

RFC 7143 sections 4.2.2 and 11.2, on the initiator's side; the counterpart of `responses`. Buffers
collect in `outgoing` and are never joined. Knows no connection phase and no answers.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from .constants import FINAL, IMMEDIATE, RESERVED_TAG, SERIAL_MASK, Opcode
from .digest import digest
from .keys import Parameters
from .pdu import (
    DataOut,
    LogoutRequest,
    NopOut,
    Pdu,
    ScsiCommand,
    TaskManagementRequest,
    TextRequest,
)
from .responses import Buffer
from .session import serial_distance
from .text import ProtocolError

NumberedRequest = ScsiCommand | TaskManagementRequest | TextRequest | LogoutRequest | NopOut

_HALF = 1 << 31  # serial numbers further apart than this have gone backwards (RFC 1982)


class Numbers(Protocol):
    """What every PDU of a target tells, unless it is a Data-In without status."""

    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


def _nothing() -> None:
    """What follows a request that has no unsolicited data."""


class RequestWriter:
    """One connection's outgoing PDUs and its numbering."""

    __slots__ = (
        "_waiting",
        "cmd_sn",
        "digests",
        "exp_cmd_sn",
        "exp_stat_sn",
        "max_cmd_sn",
        "outgoing",
        "parameters",
    )

    def __init__(self, first_cmd_sn: int, parameters: Parameters) -> None:
        self.parameters = parameters
        self.digests = False  # whether those that were agreed on are in use yet
        self.cmd_sn = self.exp_cmd_sn = self.max_cmd_sn = first_cmd_sn
        self.exp_stat_sn = 0
        self.outgoing: list[Buffer] = []
        self._waiting: deque[tuple[NumberedRequest, Buffer, bytes, Callable[[], None]]] = deque()

    def queue(self, header: Pdu, data: Buffer = b"", ahs: bytes = b"") -> None:
        """Header, digests, data and padding (section 11.2)."""
        head = header.pack() + ahs
        self.outgoing.append(head)
        if self.digests and self.parameters.header_digest:
            self.outgoing.append(digest(head))
        if not len(data):
            return
        padding = bytes(-len(data) % 4)
        self.outgoing += [data, padding] if padding else [data]
        if self.digests and self.parameters.data_digest:
            self.outgoing.append(digest(data, padding))

    def request(
        self,
        header: NumberedRequest,
        data: Buffer = b"",
        ahs: bytes = b"",
        then: Callable[[], None] = _nothing,
    ) -> None:
        """Number a request and send it, or keep it until the target's window opens.

        `then` sends what must follow it, its unsolicited data.
        """
        if header.opcode & IMMEDIATE:
            self._number(header, data, ahs)
            then()
            return
        self._waiting.append((header, data, ahs, then))
        self._send_waiting()

    def is_waiting(self, itt: int) -> bool:
        """Whether the request still waits for the target's window, unsent and unnumbered."""
        return any(header.itt == itt for header, *_ in self._waiting)

    def withdraw(self, itt: int) -> None:
        """Never send this request, if it still waits for the target's window."""
        self._waiting = deque(item for item in self._waiting if item[0].itt != itt)

    def _send_waiting(self) -> None:
        while self._waiting and serial_distance(self.max_cmd_sn, self.cmd_sn) < _HALF:
            header, data, ahs, then = self._waiting.popleft()
            self._number(header, data, ahs)
            self.cmd_sn = (self.cmd_sn + 1) & SERIAL_MASK
            then()

    def _number(self, header: NumberedRequest, data: Buffer, ahs: bytes) -> None:
        header.cmd_sn = self.cmd_sn
        header.exp_stat_sn = self.exp_stat_sn
        header.lengths = (len(ahs) // 4) << 24 | len(data)
        self.queue(header, data, ahs)

    def send_data(
        self,
        itt: int,
        data: memoryview,
        offset: int,
        end: int,
        lun: int = 0,
        ttt: int = RESERVED_TAG,
    ) -> None:
        """One sequence of Data-Out PDUs: `data` from `offset` to `end` (section 11.7)."""
        data_sn = 0
        while offset < end:
            following = min(offset + self.parameters.max_send_data_segment_length, end)
            header = DataOut(
                Opcode.DATA_OUT,
                FINAL if following == end else 0,
                following - offset,
                lun,
                itt,
                ttt,
                self.exp_stat_sn,
                data_sn,
                offset,
            )
            self.queue(header, data[offset:following])
            offset = following
            data_sn += 1

    def account(self, pdu: Numbers, *, counts: bool = True) -> None:
        """StatSN in sequence, and the command window (sections 4.2.2.1 and 4.2.2.2).

        `counts`: this PDU takes a StatSN; the others that carry one tell the next.
        """
        if pdu.stat_sn != self.exp_stat_sn:
            raise ProtocolError(f"StatSN {pdu.stat_sn} instead of {self.exp_stat_sn}")
        if counts:
            self.exp_stat_sn = (self.exp_stat_sn + 1) & SERIAL_MASK
        self.move_window(pdu.exp_cmd_sn, pdu.max_cmd_sn)

    def move_window(self, exp_cmd_sn: int, max_cmd_sn: int) -> None:
        """Take over what the target tells of its window, unless it is older than what is known."""
        if serial_distance((max_cmd_sn + 1) & SERIAL_MASK, exp_cmd_sn) >= _HALF:
            return  # MaxCmdSN below ExpCmdSN - 1: both are to be ignored
        if serial_distance(exp_cmd_sn, self.exp_cmd_sn) < _HALF:
            self.exp_cmd_sn = exp_cmd_sn
        if serial_distance(max_cmd_sn, self.max_cmd_sn) < _HALF:
            self.max_cmd_sn = max_cmd_sn
        if self._waiting:
            self._send_waiting()
