"""Answers to buffers: Data-In, SCSI Response, and the numbers that every target PDU carries.

RFC 7143 sections 4.2.2, 11.4 and 11.7. Buffers collect in `outgoing` and are never joined; the
header of a GOOD read and its data leave as two entries of one list. Knows no connection phase.
"""

from .constants import FINAL, RESERVED_TAG, SERIAL_MASK, CommandFlag, DataInFlag, Opcode
from .digest import digest
from .pdu import DataIn, ScsiResponse, TargetPdu
from .session import CommandWindow
from .transfer import Command

Buffer = bytes | bytearray | memoryview

_DATA_IN = int(Opcode.DATA_IN)
_SCSI_RESPONSE = int(Opcode.SCSI_RESPONSE)
_READ = int(CommandFlag.READ)
_WRITE = int(CommandFlag.WRITE)
_LAST_WITH_STATUS = FINAL | DataInFlag.STATUS
_OVERFLOW = int(DataInFlag.OVERFLOW)
_UNDERFLOW = int(DataInFlag.UNDERFLOW)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

_pack_data_in = DataIn.LAYOUT.pack
_pack_response = ScsiResponse.LAYOUT.pack


class ResponseWriter:
    """One connection's outgoing PDUs. Lengths are bytes."""

    __slots__ = (
        "data_digest",
        "header_digest",
        "max_burst_length",
        "max_segment_length",
        "outgoing",
        "single_length",
        "stat_sn",
        "window",
    )

    def __init__(self, stat_sn: int) -> None:
        self.stat_sn = stat_sn
        self.window = CommandWindow(0, 1)
        self.outgoing: list[Buffer] = []
        self.header_digest = False
        self.data_digest = False
        self.limit_lengths(8192, 262144)

    def limit_lengths(self, max_segment_length: int, max_burst_length: int) -> None:
        """The initiator's MaxRecvDataSegmentLength, and MaxBurstLength."""
        self.max_segment_length = max_segment_length
        self.max_burst_length = max_burst_length
        self.single_length = min(max_segment_length, max_burst_length)

    def next_stat_sn(self) -> int:
        """The StatSN of an answer that carries status."""
        stat_sn = self.stat_sn
        self.stat_sn = (stat_sn + 1) & SERIAL_MASK
        return stat_sn

    def queue(self, pdu: TargetPdu, data: Buffer = b"") -> None:
        """Send a PDU that is not on the data path, numbered like every target PDU."""
        pdu.exp_cmd_sn = self.window.expected
        pdu.max_cmd_sn = self.window.max_cmd_sn
        pdu.lengths = len(data)
        self._append(pdu.pack(), data)

    def _append(self, header: bytes, data: Buffer) -> None:
        outgoing = self.outgoing
        outgoing.append(header)
        if self.header_digest:
            outgoing.append(digest(header))
        length = len(data)
        if length:
            outgoing.append(data)
            padding = _PADDING[length & 3]
            if padding:
                outgoing.append(padding)
            if self.data_digest:
                outgoing.append(digest(data, padding))

    def respond(
        self,
        command: Command,
        status: int,
        data: Buffer | None = None,
        sense: bytes = b"",
        data_out_length: int | None = None,
    ) -> None:
        """Answer a SCSI command: its data-in, then its status, collapsed where that is allowed.

        `data_out_length` is how much data-out the CDB asked for (None: what was transferred).
        """
        window = self.window
        window.limit = (window.limit + command.credit) & SERIAL_MASK
        expected = command.expected_length if command.flags & _READ else 0
        if data is not None and status == 0:
            length = len(data)
            if length == expected and length <= self.single_length and length:
                stat_sn = self.stat_sn
                self.stat_sn = (stat_sn + 1) & SERIAL_MASK
                header = _pack_data_in(
                    _DATA_IN,
                    _LAST_WITH_STATUS,
                    0,
                    length,
                    0,
                    command.itt,
                    RESERVED_TAG,
                    stat_sn,
                    window.expected,
                    (window.limit - 1) & SERIAL_MASK,
                    0,
                    0,
                    0,
                )
                self._append(header, data)
                return
            if expected and length:
                self._send_data_in(command, memoryview(data), expected, collapse=True)
                return
        self._respond_apart(command, status, data, sense, expected, data_out_length)

    def _respond_apart(
        self,
        command: Command,
        status: int,
        data: Buffer | None,
        sense: bytes,
        expected: int,
        data_out_length: int | None,
    ) -> None:
        """A SCSI Response PDU, after the Data-In that precedes it if any."""
        moved = len(data) if data is not None else 0
        exp_data_sn = 0
        if moved and expected:
            assert data is not None
            exp_data_sn = self._send_data_in(command, memoryview(data), expected, collapse=False)
        if command.flags & _WRITE:
            expected = command.expected_length
            moved = expected if data_out_length is None else data_out_length
            if command.transfer is not None:
                exp_data_sn = command.transfer.next_r2t_sn
        flags, residual = _residual(expected, moved)
        window = self.window
        segment = len(sense).to_bytes(2, "big") + sense if sense else b""
        header = _pack_response(
            _SCSI_RESPONSE,
            FINAL | flags,
            0,
            status,
            len(segment),
            command.itt,
            0,
            self.next_stat_sn(),
            window.expected,
            (window.limit - 1) & SERIAL_MASK,
            exp_data_sn,
            0,
            residual,
        )
        self._append(header, segment)

    def _send_data_in(
        self, command: Command, data: memoryview, expected: int, *, collapse: bool
    ) -> int:
        """Split data-in by segment and burst length; the number of PDUs sent.

        `collapse` puts GOOD status and the residual into the last one (section 11.7.3).
        """
        flags, residual = _residual(expected, len(data))
        end = min(len(data), expected)
        window = self.window
        offset = data_sn = 0
        burst_end = min(self.max_burst_length, end)
        while offset < end:
            following = min(offset + self.max_segment_length, burst_end)
            with_status = collapse and following == end
            header = _pack_data_in(
                _DATA_IN,
                (FINAL if following == burst_end else 0)
                | (DataInFlag.STATUS | flags if with_status else 0),
                0,
                following - offset,
                0,
                command.itt,
                RESERVED_TAG,
                self.next_stat_sn() if with_status else 0,
                window.expected,
                (window.limit - 1) & SERIAL_MASK,
                data_sn,
                offset,
                residual if with_status else 0,
            )
            self._append(header, data[offset:following])
            if following == burst_end:
                burst_end = min(burst_end + self.max_burst_length, end)
            offset = following
            data_sn += 1
        return data_sn


def _residual(expected: int, moved: int) -> tuple[int, int]:
    """Flag and residual count (section 11.4.5)."""
    if moved < expected:
        return _UNDERFLOW, expected - moved
    if moved > expected:
        return _OVERFLOW, moved - expected
    return 0, 0
