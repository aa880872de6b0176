"""A SCSI command's data on its way: immediate, unsolicited and solicited Data-Out, and R2T.

RFC 7143 sections 4.2.5, 11.3, 11.7 and 11.8, for DataPDUInOrder=Yes and DataSequenceInOrder=Yes:
the data of a command arrives in the order of its buffer, so it is just a list of pieces.
"""

from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct

from .constants import (
    FINAL,
    RESERVED_TAG,
    SERIAL_MASK,
    AhsType,
    CommandFlag,
    RejectReason,
)
from .keys import Parameters
from .pdu import ReadyToTransfer
from .text import ProtocolError

SOLICITED_LENGTH_MAX = 16 * 1024 * 1024  # bytes asked for by R2T and not here yet


class Command:
    """A SCSI command as the initiator sent it; `data` is its data-out, complete once delivered.

    `expected_length` is the Expected Data Transfer Length in bytes, in the direction that `flags`
    tells. The pieces of `data` are views into the receive buffer when `transfer` is None: they are
    valid until the round ends. `credit` is how far its end moves MaxCmdSN (0 if immediate).
    """

    __slots__ = (
        "attribute",
        "cdb",
        "cmd_sn",
        "credit",
        "data",
        "expected_length",
        "flags",
        "itt",
        "lun",
        "transfer",
    )

    def __init__(
        self, itt: int, lun: int, cdb: bytes, flags: int, expected_length: int, cmd_sn: int
    ) -> None:
        self.itt = itt
        self.lun = lun
        self.cdb = cdb
        self.flags = flags
        self.attribute = flags & 7
        self.expected_length = expected_length
        self.cmd_sn = cmd_sn
        self.credit = 1
        self.data: list[memoryview | bytes] = []
        self.transfer: Transfer | None = None

    @property
    def is_read(self) -> bool:
        return bool(self.flags & CommandFlag.READ)

    @property
    def is_write(self) -> bool:
        return bool(self.flags & CommandFlag.WRITE)


def extended_cdb(ahs: bytes) -> bytes:
    """What additional header segments add to the CDB (section 11.2.2). Raises ProtocolError."""
    offset, extension = 0, b""
    while offset < len(ahs):
        length = int.from_bytes(ahs[offset : offset + 2], "big")
        if offset + 3 + length > len(ahs) or length < 1:
            raise ProtocolError("AHS outside its header", RejectReason.INVALID_PDU_FIELD)
        if ahs[offset + 2] == AhsType.EXTENDED_CDB:
            extension += ahs[offset + 4 : offset + 3 + length]
        offset += (3 + length + 3) & ~3
    return extension


class Burst:
    """One sequence of Data-Out PDUs: those after an R2T, or the unsolicited ones."""

    __slots__ = ("data_sn", "end", "ttt")

    def __init__(self, ttt: int, end: int) -> None:
        self.ttt = ttt
        self.end = end  # the buffer offset at which this sequence may end at the latest
        self.data_sn = 0


class Transfer:
    """The data-out of one command while it is under way. Lengths and offsets are bytes."""

    __slots__ = (
        "answer",
        "bursts",
        "next_r2t_sn",
        "received",
        "solicited",
        "under_way",
        "wanted",
    )

    def __init__(self, immediate_length: int, unsolicited_end: int) -> None:
        self.received = immediate_length
        self.solicited = immediate_length  # what has been asked for, or announced as unsolicited
        self.under_way = 0  # of it, what was asked for by R2T and is not here yet
        self.wanted: int | None = None  # what the command takes: unknown until `solicit`
        self.next_r2t_sn = 0
        self.answer: Callable[[], None] | None = None  # given early: waits for the open sequences
        self.bursts: list[Burst] = []
        if unsolicited_end > immediate_length:
            self.bursts.append(Burst(RESERVED_TAG, unsolicited_end))
            self.solicited = unsolicited_end

    @property
    def complete(self) -> bool:
        """Whether all that the command takes is here and no sequence is open."""
        if self.wanted is None or self.answer is not None:
            return False
        return not self.bursts and self.received >= self.wanted

    def next_burst(self, parameters: Parameters, ttt: int) -> tuple[int, int] | None:
        """Open the next solicited sequence: (buffer offset, length), or None if none is due."""
        unsolicited_open = bool(self.bursts) and self.bursts[0].ttt == RESERVED_TAG
        if self.wanted is None or unsolicited_open or self.solicited >= self.wanted:
            return None
        if self.answer is not None:
            return None
        if len(self.bursts) >= parameters.max_outstanding_r2t:
            return None
        offset = self.solicited
        length = min(self.wanted - offset, parameters.max_burst_length)
        self.solicited = offset + length
        self.bursts.append(Burst(ttt, self.solicited))
        return offset, length

    def in_sequence(self, data_sn: int) -> bool:
        """Whether no Data-Out is missing before this one (section 7.9)."""
        return not self.bursts or self.bursts[0].data_sn == data_sn

    def discard(self, flags: int) -> None:
        """Account for a Data-Out PDU of a command that ends early: only its F bit matters."""
        if flags & FINAL and self.bursts:
            del self.bursts[0]

    def receive(self, ttt: int, flags: int, offset: int, length: int) -> None:
        """Account for one Data-Out PDU. Raises ProtocolError if it is not the one that is due."""
        burst = self.bursts[0] if self.bursts else None
        if burst is None or burst.ttt != ttt:
            raise ProtocolError("Data-Out that was not asked for")
        if offset != self.received or offset + length > burst.end:
            raise ProtocolError("Data-Out outside its sequence")
        burst.data_sn = (burst.data_sn + 1) & SERIAL_MASK
        self.received += length
        if flags & FINAL:
            self._close(burst)
        elif self.received == burst.end:
            raise ProtocolError("Data-Out without F at the end of its sequence")

    def _close(self, burst: Burst) -> None:
        """F ends a sequence; only unsolicited data may end early (section 11.7.1)."""
        if burst.ttt == RESERVED_TAG:
            self.solicited = self.received
        elif self.received < burst.end:
            raise ProtocolError("a solicited sequence ended early")
        del self.bursts[0]


class TransferQueue:
    """Which command may ask for data next, within a bound on what is under way by R2T."""

    __slots__ = ("_next_ttt", "_under_way", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._under_way = 0
        self._next_ttt = 0

    def new_ttt(self) -> int:
        """A Target Transfer Tag that is in use nowhere else."""
        ttt = self._next_ttt
        self._next_ttt = (ttt + 1) % RESERVED_TAG
        return ttt

    def add(self, command: Command) -> None:
        """Let a command ask for data when its turn comes."""
        if command not in self._waiting:
            self._waiting.append(command)

    def arrived(self, transfer: Transfer, length: int) -> None:
        """Solicited data came in."""
        self._under_way -= length
        transfer.under_way -= length

    def remove(self, command: Command) -> None:
        """A command ended before its data was all here."""
        if command.transfer is not None:
            self.arrived(command.transfer, command.transfer.under_way)
        if command in self._waiting:
            self._waiting.remove(command)

    def due(self, parameters: Parameters) -> Iterator[ReadyToTransfer]:
        """The R2Ts that may be sent now, first come first served."""
        while self._waiting and self._under_way < SOLICITED_LENGTH_MAX:
            command = self._waiting[0]
            transfer = command.transfer
            assert transfer is not None
            burst = transfer.next_burst(parameters, self._next_ttt)
            if burst is None:
                self._waiting.popleft()
                continue
            offset, length = burst
            self._under_way += length
            transfer.under_way += length
            yield ReadyToTransfer(
                lun=command.lun,
                itt=command.itt,
                ttt=self.new_ttt(),
                r2t_sn=transfer.next_r2t_sn,
                buffer_offset=offset,
                desired_length=length,
            )
            transfer.next_r2t_sn += 1


# Sense data that the transport itself gives (section 11.4.7.2), fixed format:
# response code, sense key, additional length, ASC and ASCQ.
_SENSE = Struct(">BxB4xB4xBB4x")


def _fixed_sense(sense_key: int, asc: int, ascq: int) -> bytes:
    return _SENSE.pack(0x70, sense_key, 10, asc, ascq)


ABORTED_COMMAND = 0x0B
ILLEGAL_REQUEST = 0x05
UNEXPECTED_UNSOLICITED_DATA = _fixed_sense(ABORTED_COMMAND, 0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = _fixed_sense(ABORTED_COMMAND, 0x0C, 0x0D)
PROTOCOL_SERVICE_CRC_ERROR = _fixed_sense(ABORTED_COMMAND, 0x47, 0x05)
INVALID_FIELD_IN_COMMAND_IU = _fixed_sense(ILLEGAL_REQUEST, 0x0E, 0x03)


def refuse_data(command: Command, length: int, parameters: Parameters) -> bytes:
    """Sense data for a write whose data does not come as was negotiated, or b"".

    `length` is that of the immediate data (sections 11.3 and 13.10 to 13.14).
    """
    if command.flags & CommandFlag.READ:
        return INVALID_FIELD_IN_COMMAND_IU  # bidirectional commands do not exist here
    if length and not parameters.immediate_data:
        return UNEXPECTED_UNSOLICITED_DATA
    if parameters.initial_r2t and not command.flags & FINAL:
        return UNEXPECTED_UNSOLICITED_DATA
    if length > min(command.expected_length, parameters.first_burst_length):
        return INCORRECT_AMOUNT_OF_DATA
    return b""
