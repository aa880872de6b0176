"""A small blocking initiator over a plain socket, written apart from the package on purpose.

It says exactly what it is told, so it can send what no decent client sends, speak both digests
(Debian's clients cannot), and hold many idle sessions. RFC 7143 section 11 gives the layouts.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from crc32c import crc32c

BHS_LENGTH = 48
NO_TAG = 0xFFFFFFFF

NOP_OUT, SCSI_COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT = range(7)
NOP_IN, SCSI_RESPONSE, TASK_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE = range(0x20, 0x25)
DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC_MESSAGE, REJECT = 0x25, 0x26, 0x31, 0x32, 0x3F

FINAL = 0x80
IMMEDIATE = 0x40
READ, WRITE = 0x40, 0x20
STATUS_PRESENT = 0x01

_COMMAND = struct.Struct(">BBxxI8sIIII16s")
_DATA_OUT = struct.Struct(">BBxxI8sIIxxxxIxxxxIIxxxx")
_LOGIN = struct.Struct(">BBBBI6sHIHxxII16x")
_PLAIN = struct.Struct(">BBBxI8sIIII16x")

PREFERRED_KEYS = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxBurstLength": "1048576",
    "FirstBurstLength": "262144",
    "MaxRecvDataSegmentLength": "262144",
    "MaxOutstandingR2T": "1",
    "ErrorRecoveryLevel": "0",
    "MaxConnections": "1",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
}


class LoginRefused(Exception):
    """The target answered the login with a status class other than success."""

    def __init__(self, status: int) -> None:
        super().__init__(f"login status {status:#06x}")
        self.status = status


@dataclass(slots=True)
class Pdu:
    """A received PDU; `data` is a view that the next receive overwrites."""

    header: bytes
    data: memoryview

    @property
    def opcode(self) -> int:
        return self.header[0] & 0x3F

    @property
    def flags(self) -> int:
        return self.header[1]

    def word(self, offset: int) -> int:
        value: int = struct.unpack_from(">I", self.header, offset)[0]
        return value


def encode_text(keys: Mapping[str, str]) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in keys.items())


def decode_text(data: bytes | memoryview) -> dict[str, str]:
    pairs = (item.split("=", 1) for item in bytes(data).decode().split("\0") if item)
    return dict(pairs)


def lun_field(lun: int) -> bytes:
    """Peripheral device addressing (SAM-6 clause 4.7.6)."""
    return bytes([0, lun]) + bytes(6)


class RawInitiator:
    """One connection; after `login` also one session."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = 30) -> None:
        self.socket = socket.create_connection(address, timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.keys: dict[str, str] = {}
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.max_cmd_sn = 1
        self.header_digest = self.data_digest = False
        self._tag = 0
        self._header = bytearray(BHS_LENGTH + 4)
        self._data = memoryview(bytearray(1 << 20))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close by RST, as a crashed host or a pulled cable would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def next_tag(self) -> int:
        self._tag = (self._tag + 1) & 0x7FFFFFFF
        return self._tag

    # Sending

    def frame(self, header: bytes, data: bytes | memoryview = b"") -> list[bytes | memoryview]:
        """The buffers of one PDU, with digests and padding as negotiated."""
        parts: list[bytes | memoryview] = [header]
        if self.header_digest:
            parts.append(struct.pack("<I", crc32c(header)))
        if len(data):
            padding = bytes(-len(data) % 4)
            parts += [data, padding] if padding else [data]
            if self.data_digest:
                parts.append(struct.pack("<I", crc32c(padding, crc32c(data))))
        return parts

    def send(self, header: bytes, data: bytes | memoryview = b"") -> None:
        parts = self.frame(header, data)
        total = sum(map(len, parts))
        sent = self.socket.sendmsg(parts)
        if sent < total:
            self.socket.sendall(b"".join(parts)[sent:])

    # Receiving

    def _receive_exactly(self, into: memoryview) -> None:
        while len(into):
            count = self.socket.recv_into(into)
            if not count:
                raise ConnectionError("the target closed the connection")
            into = into[count:]

    def receive(self) -> Pdu:
        """The next PDU, its digests checked and its sequence numbers noted."""
        length = BHS_LENGTH + (4 if self.header_digest else 0)
        self._receive_exactly(memoryview(self._header)[:length])
        header = bytes(self._header[:BHS_LENGTH])
        if self.header_digest:
            assert self._header[BHS_LENGTH:] == struct.pack("<I", crc32c(header)), "header digest"
        data_length = int.from_bytes(header[5:8])
        padded = data_length + -data_length % 4
        if data_length:
            self._receive_data(padded)
        pdu = Pdu(header, self._data[:data_length])
        self._note_numbers(pdu)
        return pdu

    def _receive_data(self, padded: int) -> None:
        segment = self._data[: padded + (4 if self.data_digest else 0)]
        self._receive_exactly(segment)
        if self.data_digest:
            expected = struct.pack("<I", crc32c(segment[:padded]))
            assert bytes(segment[padded:]) == expected, "data digest"

    def _note_numbers(self, pdu: Pdu) -> None:
        if (pdu.opcode != DATA_IN or pdu.flags & STATUS_PRESENT) and pdu.opcode != R2T:
            self.exp_stat_sn = (pdu.word(24) + 1) & 0xFFFFFFFF
        self.max_cmd_sn = pdu.word(32)

    # Login and logout

    def login(
        self,
        target: str,
        *,
        initiator: str = "iqn.2026-11.example.test:raw",
        isid: bytes = b"\x80\x12\x34\x56\x00\x01",
        keys: Mapping[str, str] | None = None,
    ) -> Self:
        """Direct to the operational stage and on to full feature phase (RFC 7143 section 6.3)."""
        offered = {
            "InitiatorName": initiator,
            "TargetName": target,
            "SessionType": "Normal",
            **PREFERRED_KEYS,
            **(keys or {}),
        }
        text = encode_text(offered)
        flags = FINAL | 1 << 2 | 3
        fields = (LOGIN | IMMEDIATE, flags, 0, 0, len(text), isid, 0, self.next_tag(), 1)
        self.send(_LOGIN.pack(*fields, self.cmd_sn, 0), text)
        while True:
            answer = self.receive()
            status = int.from_bytes(answer.header[36:38])
            if answer.opcode != LOGIN_RESPONSE or status:
                raise LoginRefused(status)
            self.keys.update(decode_text(answer.data))
            if answer.flags & FINAL:
                break
            again = (LOGIN | IMMEDIATE, flags, 0, 0, 0, isid, 0, self._tag, 1)
            self.send(_LOGIN.pack(*again, self.cmd_sn, self.exp_stat_sn))
        self.header_digest = self.keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = self.keys.get("DataDigest") == "CRC32C"
        return self

    def logout(self) -> None:
        """Close the session (RFC 7143 section 11.14)."""
        fields = (LOGOUT | IMMEDIATE, FINAL, 0, 0, bytes(8), self.next_tag(), 0)
        self.send(_PLAIN.pack(*fields, self.cmd_sn, self.exp_stat_sn))
        while self.receive().opcode != LOGOUT_RESPONSE:
            pass

    # Commands

    def start(
        self,
        cdb: bytes,
        *,
        lun: int = 0,
        read_bytes: int = 0,
        data: bytes | memoryview = b"",
        immediate_bytes: int | None = None,
    ) -> int:
        """Send a command with as much immediate data as asked (None: as allowed); its tag."""
        tag = self.next_tag()
        immediate = self._immediate(data) if immediate_bytes is None else data[:immediate_bytes]
        flags = 1 | (READ if read_bytes else 0) | (WRITE if len(data) else 0)
        # F: no unsolicited Data-Out follows; what is not immediate waits for an R2T.
        flags |= FINAL
        header = _COMMAND.pack(
            SCSI_COMMAND,
            flags,
            len(immediate),
            lun_field(lun),
            tag,
            read_bytes or len(data),
            self.cmd_sn,
            self.exp_stat_sn,
            cdb.ljust(16, b"\0"),
        )
        self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        self.send(header, immediate)
        return tag

    def _first_burst(self, data: bytes | memoryview) -> int:
        return min(len(data), int(self.keys.get("FirstBurstLength", "65536")))

    def _segment_limit(self) -> int:
        return int(self.keys.get("MaxRecvDataSegmentLength", "8192"))

    def _immediate(self, data: bytes | memoryview) -> bytes | memoryview:
        if self.keys.get("ImmediateData") == "No":
            return data[:0]
        return data[: min(self._first_burst(data), self._segment_limit())]

    def answer_r2t(self, r2t: Pdu, data: bytes | memoryview) -> None:
        """The Data-Out sequence that the R2T asks for (RFC 7143 section 11.8)."""
        offset, length = r2t.word(40), r2t.word(44)
        end = offset + length
        limit = self._segment_limit()
        for number, start in enumerate(range(offset, end, limit)):
            piece = memoryview(data)[start : min(start + limit, end)]
            last = FINAL if start + limit >= end else 0
            header = _DATA_OUT.pack(
                DATA_OUT,
                last,
                len(piece),
                r2t.header[8:16],
                r2t.word(16),
                r2t.word(20),
                self.exp_stat_sn,
                number,
                start,
            )
            self.send(header, piece)

    def finish(self, tag: int, data: bytes | memoryview = b"") -> tuple[int, bytes]:
        """Serve R2Ts until the command's status arrives; status and data-in."""
        received = bytearray()
        while True:
            pdu = self.receive()
            if pdu.word(16) != tag:
                continue
            if pdu.opcode == R2T:
                self.answer_r2t(pdu, data)
            elif pdu.opcode == DATA_IN:
                received += pdu.data
                if pdu.flags & STATUS_PRESENT:
                    return pdu.header[3], bytes(received)
            elif pdu.opcode == SCSI_RESPONSE:
                return pdu.header[3], bytes(received)
            else:
                raise AssertionError(f"opcode {pdu.opcode:#x} in answer to a command")

    def command(
        self, cdb: bytes, *, lun: int = 0, read_bytes: int = 0, data: bytes | memoryview = b""
    ) -> tuple[int, bytes]:
        """One command from start to end."""
        return self.finish(self.start(cdb, lun=lun, read_bytes=read_bytes, data=data), data)


def read_16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIxx", 0x88, 0, lba, blocks)


def write_16(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIxx", 0x8A, 0, lba, blocks)


@contextlib.contextmanager
def raw_session(
    address: tuple[str, int], target: str, *, keys: Mapping[str, str] | None = None
) -> Iterator[RawInitiator]:
    """A logged-in session that logs out at the end of the block."""
    with RawInitiator(address) as initiator:
        initiator.login(target, keys=keys)
        yield initiator
        initiator.logout()
