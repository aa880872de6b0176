"""Both engines joined in memory: a target with a small disk behind it, and what speaks to it.

`Target` owns a `TargetConnection` the way the server does, without sockets. `Pair` joins it with an
`InitiatorConnection`; `RawPeer` says what it is told, PDU by PDU, and reads the answers decoded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import (
    BHS_LENGTH,
    IMMEDIATE,
    TRANSIT,
    LoginStatus,
    TaskManagement,
    TaskManagementResponse,
)
from pyiscsi_target.iscsi.digest import DIGEST_LENGTH, digest
from pyiscsi_target.iscsi.events import (
    ConnectionFailed,
    Event,
    LoginFailed,
    LogoutRequested,
    SessionRequested,
    TaskManagementRequested,
    TransferFailed,
    TransferRequested,
)
from pyiscsi_target.iscsi.framing import BufferPool
from pyiscsi_target.iscsi.initiator import InitiatorConnection
from pyiscsi_target.iscsi.initiator_events import InitiatorEvent
from pyiscsi_target.iscsi.initiator_login import InitiatorSettings
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.login import LoginError, Terms
from pyiscsi_target.iscsi.pdu import LoginRequest, LoginResponse, Pdu, decode, stage_flags
from pyiscsi_target.iscsi.target import TargetConnection
from pyiscsi_target.iscsi.text import ProtocolError, decode_pairs, encode_pairs
from pyiscsi_target.iscsi.transfer import Command

TARGET_NAME = "iqn.2026-11.lab.example:disk"
INITIATOR_NAME = "iqn.2026-11.lab.example:host"
ISID = bytes.fromhex("400001370000")
TSIH = 0x1234
BLOCK_LENGTH = 512
GOOD = 0
CHECK_CONDITION = 2
INVALID_OPCODE_SENSE = bytes.fromhex("70000500000000" + "0a" + "00000000" + "2000" + "00000000")

TEST_UNIT_READY = bytes(6)


def read_10(lba: int, blocks: int) -> bytes:
    return b"\x28\x00" + lba.to_bytes(4, "big") + b"\x00" + blocks.to_bytes(2, "big") + b"\x00"


def write_10(lba: int, blocks: int) -> bytes:
    return b"\x2a" + read_10(lba, blocks)[1:]


class Randomness:
    """A random source that repeats itself: every call gives other bytes, every run the same."""

    def __init__(self, seed: int = 1) -> None:
        self._state = seed

    def __call__(self, length: int) -> bytes:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return self._state.to_bytes(8, "big")[:length].ljust(length, b"\x5a")


@dataclass
class Policy:
    """One target (and discovery) that everyone may use, unless `refusals` names a status."""

    limits: Limits = field(default_factory=Limits)
    credentials: Credentials | None = None
    discovery_credentials: Credentials | None = None
    alias: str | None = None
    portal_group_tag: int = 1
    queue_depth: int = 128
    targets: dict[str, list[str]] = field(
        default_factory=lambda: {TARGET_NAME: ["127.0.0.1:3260,1"]}
    )
    refusals: dict[str, LoginStatus] = field(default_factory=dict)

    def discovery_terms(self, initiator_name: str) -> Terms:
        return Terms(None, self.limits, credentials=self.discovery_credentials)

    def target_terms(self, initiator_name: str, target_name: str) -> Terms:
        if status := self.refusals.get(initiator_name):
            raise LoginError(status, "refused by the test")
        if target_name not in self.targets:
            raise LoginError(LoginStatus.NOT_FOUND, "no such target")
        return Terms(
            target_name,
            self.limits,
            self.portal_group_tag,
            self.alias,
            self.queue_depth,
            self.credentials,
        )

    def send_targets(
        self, initiator_name: str, target_name: str | None
    ) -> list[tuple[str, list[str]]]:
        names = self.targets if target_name is None else {target_name} & self.targets.keys()
        return [(name, self.targets[name]) for name in names]


@dataclass
class Disk:
    """A device server for two block commands; `asks` overrides how much data-out a CDB wants."""

    content: bytearray = field(default_factory=lambda: bytearray(4096 * BLOCK_LENGTH))
    asks: Callable[[Command], int | None] | None = None

    def wanted(self, command: Command) -> int | None:
        """Bytes of data-out that the CDB takes; None: the command is refused."""
        if self.asks is not None:
            return self.asks(command)
        return self._length(command) if command.cdb[0] == 0x2A else None

    def execute(self, command: Command) -> dict[str, Any]:
        offset = int.from_bytes(command.cdb[2:6], "big") * BLOCK_LENGTH
        if command.cdb[0] == 0x00:
            return {"status": GOOD}
        if command.cdb[0] == 0x28:
            data = bytes(self.content[offset : offset + self._length(command)])
            return {"status": GOOD, "data": data}
        if command.cdb[0] == 0x2A:
            written = b"".join(command.data)[: self._length(command)]
            self.content[offset : offset + len(written)] = written
            return {"status": GOOD, "data_out_length": self._length(command)}
        return {"status": CHECK_CONDITION, "sense": INVALID_OPCODE_SENSE, "data_out_length": 0}

    @staticmethod
    def _length(command: Command) -> int:
        return int.from_bytes(command.cdb[7:9], "big") * BLOCK_LENGTH


class Target:
    """The target's end: bytes in, bytes out, and every event kept in `events`.

    `held` True keeps commands unanswered in `commands` until `answer`; `session_error` refuses the
    session that a login asks for; `manage` decides task management (None: later).
    """

    def __init__(self, policy: Policy | None = None, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        pool = BufferPool(512 * 1024, keep=1)
        self.connection = TargetConnection(policy or Policy(), Randomness(), pool)
        self.closed = False
        self.events: list[Event] = []
        self.commands: list[Command] = []
        self.transfers: list[Command] = []  # whose data-out is on its way
        self.held = False
        self.session_error: ProtocolError | None = None
        self.manage: Callable[[TaskManagementRequested], int | None] = self._manage

    def feed(self, data: bytes, chunk_length: int | None = None) -> bytes:
        """What the target sends in answer to `data`, which arrives in pieces of this length."""
        step = chunk_length or len(data) or 1
        for start in range(0, len(data), step):
            self._feed_piece(memoryview(data)[start : start + step])
        return self.sent()

    def _feed_piece(self, piece: memoryview) -> None:
        connection = self.connection
        while len(piece) and not self.closed:
            room = connection.writable()
            length = min(len(room), len(piece))
            room[:length] = piece[:length]
            for event in connection.receive(length):
                self._handle(event)
            connection.settle()
            piece = piece[length:]

    def sent(self) -> bytes:
        """What is to be sent by now."""
        data = b"".join(self.connection.outgoing)
        self.connection.outgoing.clear()
        return data

    def _handle(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case LoginFailed() | ConnectionFailed():
                self.closed = True
            case LogoutRequested():
                self.connection.accept_logout(event)
                self.closed = True
            case SessionRequested():
                self._open_session(event)
            case TransferFailed(command):
                self.transfers = [each for each in self.transfers if each is not command]
            case TransferRequested(command):
                self._solicit(command)
            case TaskManagementRequested():
                if (response := self.manage(event)) is not None:
                    self.connection.task_management_response(event, response)
            case Command():
                self._execute(event)
            case _:
                pass

    def _open_session(self, event: SessionRequested) -> None:
        if self.session_error is not None:
            self._handle(self.connection.refuse_session(self.session_error))
        else:
            self.connection.accept_session(event.agreement.tsih or TSIH)

    def _solicit(self, command: Command) -> None:
        wanted = self.disk.wanted(command)
        if wanted is None:
            self.connection.respond(
                command, CHECK_CONDITION, sense=INVALID_OPCODE_SENSE, data_out_length=0
            )
        elif (complete := self.connection.solicit(command, wanted)) is not None:
            self._execute(complete)
        else:
            self.transfers.append(command)

    def _execute(self, command: Command) -> None:
        if command in self.transfers:
            self.transfers.remove(command)
        if self.held:
            self.connection.defer(command)
            self.commands.append(command)
        else:
            self.connection.respond(command, **self.disk.execute(command))

    def answer(self, command: Command) -> bytes:
        """Execute a held command now; what is sent for it."""
        self.commands.remove(command)
        self.connection.respond(command, **self.disk.execute(command))
        return self.sent()

    def _manage(self, request: TaskManagementRequested) -> int:
        """ABORT TASK ends one command, every other function ends all."""
        if request.function != TaskManagement.ABORT_TASK:
            affected = [*self.commands, *self.transfers]
        else:
            command = self.connection.command_of(request.referenced_task_tag)
            if command is None:
                return TaskManagementResponse.TASK_DOES_NOT_EXIST
            affected = [command]
        for command in affected:
            self.connection.drop(command)
            self.connection.send_r2ts()
        self.commands = [each for each in self.commands if each not in affected]
        self.transfers = [each for each in self.transfers if each not in affected]
        return TaskManagementResponse.FUNCTION_COMPLETE


class Pair:
    """An initiator's engine and a target's, joined by two lists of bytes."""

    def __init__(
        self, settings: InitiatorSettings, target: Target | None = None, chunk_length: int = 0
    ) -> None:
        self.initiator = InitiatorConnection(settings, Randomness(2))
        self.target = target or Target()
        self.chunk_length = chunk_length or None

    def run(self) -> list[InitiatorEvent]:
        """Deliver both ways until neither has anything to say; the initiator's events."""
        events: list[InitiatorEvent] = []
        sent = self.target.sent()
        while True:
            events += self._deliver(sent)
            request = b"".join(self.initiator.take_outgoing())
            sent = self.target.feed(request, self.chunk_length)
            if not request and not sent:
                return events

    def _deliver(self, data: bytes) -> list[InitiatorEvent]:
        step = self.chunk_length or len(data) or 1
        events: list[InitiatorEvent] = []
        for start in range(0, len(data), step):
            events += self.initiator.receive(data[start : start + step])
        return events

    def log_in(self) -> list[InitiatorEvent]:
        self.initiator.begin()
        return self.run()


Answer = tuple[Any, bytes]  # a decoded header and its data segment


def decode_stream(
    data: bytes, *, header_digest: bool = False, data_digest: bool = False
) -> list[Answer]:
    """Every PDU in `data`, which must hold nothing else; digests are checked."""
    answers: list[Answer] = []
    position = 0
    while position < len(data):
        header = data[position : position + BHS_LENGTH]
        position += BHS_LENGTH
        pdu: Any = decode(header)
        assert pdu.lengths >> 24 == 0, "a target sends no AHS"
        if header_digest:
            assert data[position : position + DIGEST_LENGTH] == digest(header)
            position += DIGEST_LENGTH
        length = pdu.lengths & 0xFFFFFF
        padded = length + 3 & ~3
        segment, position = data[position : position + padded], position + padded
        assert len(segment) == padded
        assert not any(segment[length:]), "padding is zero"
        if data_digest and length:
            assert data[position : position + DIGEST_LENGTH] == digest(segment)
            position += DIGEST_LENGTH
        answers.append((pdu, segment[:length]))
    return answers


def frame(
    pdu: Pdu,
    data: bytes = b"",
    ahs: bytes = b"",
    *,
    header_digest: bool = False,
    data_digest: bool = False,
) -> bytes:
    """A PDU's bytes, its length fields set."""
    pdu.lengths = len(ahs) // 4 << 24 | len(data)  # type: ignore[attr-defined]
    head = pdu.pack() + ahs
    segment = data + bytes(-len(data) % 4)
    parts = [head, digest(head) if header_digest else b"", segment]
    if data_digest and data:
        parts.append(digest(segment))
    return b"".join(parts)


class RawPeer:
    """An initiator that says what it is told. After `log_in` it keeps CmdSN and ExpStatSN."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.itt = 0
        self.digests = {"header_digest": False, "data_digest": False}

    @property
    def closed(self) -> bool:
        return self.target.closed

    def send(self, pdu: Pdu, data: bytes = b"", ahs: bytes = b"") -> list[Answer]:
        """The answers to one PDU, exactly as it stands."""
        return self.send_bytes(frame(pdu, data, ahs, **self.digests))

    def send_bytes(self, data: bytes) -> list[Answer]:
        return decode_stream(self.target.feed(data), **self.digests)

    def request(self, pdu: Any, data: bytes = b"", ahs: bytes = b"") -> list[Answer]:
        """The answers to a request that is numbered here."""
        pdu.cmd_sn = self.cmd_sn
        if not pdu.opcode & IMMEDIATE:
            self.cmd_sn += 1
        return self.send(pdu, data, ahs)

    def login(
        self,
        pairs: Iterable[tuple[str, str]] = (),
        flags: int = TRANSIT | stage_flags(1, 3),  # type: ignore[arg-type]
        **fields: Any,
    ) -> Answer:
        """The one answer to one Login Request."""
        header: dict[str, Any] = {"isid": ISID, "cmd_sn": self.cmd_sn, **fields}
        (answer,) = self.send(LoginRequest(flags=flags, **header), encode_pairs(list(pairs)))
        return answer

    def log_in(self, *keys: tuple[str, str], **fields: Any) -> LoginResponse:
        """A normal session with these operational keys, beginning in the operational stage."""
        response, data = self.login([*names(), *keys], **fields)
        assert isinstance(response, LoginResponse)
        assert response.status == 0, hex(response.status)
        self.answers = dict(decode_pairs(data))
        for name, field_name in (("HeaderDigest", "header_digest"), ("DataDigest", "data_digest")):
            self.digests[field_name] = self.answers.get(name) == "CRC32C"
        self.exp_stat_sn = response.stat_sn + 1
        return response


def names(
    target_name: str = TARGET_NAME, initiator_name: str = INITIATOR_NAME
) -> list[tuple[str, str]]:
    """The keys that every login to a target begins with."""
    return [
        ("InitiatorName", initiator_name),
        ("SessionType", "Normal"),
        ("TargetName", target_name),
    ]


DISCOVERY_NAMES = [("InitiatorName", INITIATOR_NAME), ("SessionType", "Discovery")]
