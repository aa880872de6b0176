"""A session: commands to a target's logical units over one connection, from login to logout.

The public face of the client. A session lives on one event loop; two sessions share nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from ..iscsi.constants import RESERVED_TAG, TaskManagement
from ..iscsi.initiator import InitiatorConnection
from ..iscsi.initiator_events import AsyncMessageReceived
from ..iscsi.keys import Parameters
from ..iscsi.responses import Buffer
from ..scsi.task import TaskAttribute
from . import answers, commands
from .address import Portal
from .command import Command, concerned_by, name_of, queue_command
from .connection import Connection
from .errors import BadAnswer, ClientError, CommandFailed, ConnectionLost, TaskAborted
from .initiator import Initiator
from .login import log_in
from .lun import encode_lun
from .result import Result

TIMEOUT_S = 30.0
FAREWELL_TIMEOUT_S = 5.0
MESSAGES_KEPT = 64
ATTENTIONS_MAXIMUM = 64  # more than that in a row, and the unit will never be ready
_ALLOCATION_LENGTH = 4096  # bytes: more than most answers have
_ALLOCATION_LENGTH_MAXIMUM = 0xFFFF  # what INQUIRY can ask for, and more than anybody needs
_INQUIRY_LENGTH = 255  # bytes: all that a target of any age can take

# The task is over, or was so before: FUNCTION COMPLETE, "task does not exist" (section 11.6.1).
_DONE, _NO_SUCH_TASK = 0, 1


class Session:
    """One session of one connection, in the full feature phase. Made by `Session.connect`.

    `execute` sends any command and returns whatever the target answered; the convenience methods
    raise CommandFailed for anything but GOOD. A new session is told unit attentions first
    (29h, POWER ON or RESET): call `ready` and look at what it returns.

    Every call ends within its `timeout_s`, by default that of the session, with TimedOut; a
    command that is late may still be done by the target. Every call raises ConnectionLost when
    the connection is gone; `reconnect` makes a new one for the same I_T nexus.

    `messages` holds the last Asynchronous Messages (RFC 7143 section 11.9): event 1 asks to log
    out, 2 and 3 announce the end of the connection or session. `on_message` is called with each.
    """

    def __init__(
        self, portal: Portal, target: str, initiator: Initiator, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """A session that is not connected yet; `connect` makes one that is."""
        self.initiator = initiator
        self.portal = portal
        self.target = target
        self.timeout_s = timeout_s
        self.messages: deque[AsyncMessageReceived] = deque(maxlen=MESSAGES_KEPT)
        self.on_message: Callable[[AsyncMessageReceived], None] | None = None
        self._block_sizes: dict[int, int] = {}
        self._connection: Connection | None = None

    # Life

    @classmethod
    def connect(
        cls,
        portal: Portal,
        target: str,
        initiator: Initiator | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> "Connecting":
        """Log in: `session = await Session.connect(...)`, or `async with Session.connect(...) as`.

        The second form logs out at the end of the block. Redirections are followed. `timeout_s`
        bounds the login and is the session's default from then on.

        Raises LoginRefused, whose `status` says why; ConnectionLost where there is no way to the
        target, it does not answer in time, or it cannot prove who it is (mutual CHAP).
        """
        return Connecting(cls(portal, target, initiator or Initiator(), timeout_s=timeout_s))

    async def reconnect(self) -> None:
        """Log in again with the same name and ISID, so as the same I_T nexus.

        If the session still stands, the target ends it first (session reinstatement, RFC 7143
        section 6.3.5), and what is under way ends with ConnectionLost. Raises as `connect` does;
        then the session is as it was.
        """
        connection = await log_in(
            self.portal, self.target, self.initiator, self._take_message, self.timeout_s
        )
        if self._connection is not None:
            self._connection.end("replaced by a new login of the same nexus")
        self._connection = connection
        self._block_sizes.clear()

    async def logout(self) -> None:
        """Say goodbye and close. What is under way ends with ConnectionLost.

        Raises ConnectionLost, TimedOut; ClientError where the target refuses. The connection is
        closed in every case.
        """
        connection = self._connected
        try:
            _, answer = connection.ask(InitiatorConnection.logout)
            event = await connection.wait(answer, "Logout", self.timeout_s)
            if event.response:
                raise ClientError(f"{connection.portal}: logout refused, code {event.response}")
        finally:
            connection.end("logged out")
        await connection.gone.wait()

    def drop(self) -> None:
        """Cut the connection as a host does whose power is pulled: no logout, RST."""
        if self._connection is not None:
            self._connection.cut("dropped by this side")

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, for whatever reason."""
        return self._connection is None or self._connection.closed

    async def wait_closed(self) -> None:
        """Return when the connection is gone, at once if it is. Has no time-out."""
        if self._connection is not None:
            await self._connection.gone.wait()

    @property
    def connected_to(self) -> Portal:
        """Where the connection leads: `portal`, unless the target redirected the login."""
        return self._connected.portal

    @property
    def parameters(self) -> Parameters:
        """What was negotiated (RFC 7143 section 13)."""
        return self._connected.engine.parameters

    @property
    def declared(self) -> dict[str, str]:
        """What the target declared at login: TargetPortalGroupTag, TargetAlias."""
        return self._connected.engine.login.declared

    @property
    def tsih(self) -> int:
        """The target session identifying handle."""
        return self._connected.engine.tsih

    async def close(self) -> None:
        """Log out if there still is a connection, and be done with it. Raises nothing."""
        connection = self._connection
        if connection is None:
            return
        try:
            if not connection.closed:
                _, answer = connection.ask(InitiatorConnection.logout)
                await connection.wait(answer, "Logout", min(self.timeout_s, FAREWELL_TIMEOUT_S))
        except ClientError:
            pass  # there is nobody left to say goodbye to
        finally:
            connection.end("closed by this side")
        await connection.gone.wait()

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise ConnectionLost(self.portal, "not connected yet")
        return self._connection

    def _take_message(self, message: AsyncMessageReceived) -> None:
        self.messages.append(message)
        if self.on_message is not None:
            self.on_message(message)

    # Any command

    def submit(
        self,
        lun: int,
        cdb: bytes,
        *,
        data_out: Buffer = b"",
        read_length: int = 0,
        attribute: int = TaskAttribute.SIMPLE,
        immediate: bool = False,
    ) -> Command:
        """Send a command, or queue it until the target's command window opens.

        `data_out` is sent, or up to `read_length` bytes are received. `immediate` passes the
        window (RFC 7143 section 4.2.2.1). Nothing but the caller bounds how many are submitted;
        `execute` bounds itself. Raises ConnectionLost; ValueError for both directions at once.
        """
        queue = queue_command(lun, cdb, data_out, read_length, attribute, immediate=immediate)
        connection = self._connected
        return Command(connection, *connection.ask(queue), lun, self.timeout_s)

    async def execute(
        self,
        lun: int,
        cdb: bytes,
        *,
        data_out: Buffer = b"",
        read_length: int = 0,
        attribute: int = TaskAttribute.SIMPLE,
        timeout_s: float | None = None,
    ) -> Result:
        """Send a command and return its end, whatever its status is.

        At most `Initiator.queue_depth` are under way at once, the others wait for their turn.
        Cancelling the caller does not abort the command at the target. Raises ConnectionLost,
        RequestRejected, TaskAborted, TimedOut; ValueError as `submit` does.
        """
        connection = self._connected
        queue = queue_command(lun, cdb, data_out, read_length, attribute)
        within_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(within_s):
                return Result.of(await asyncio.shield(await connection.ask_in_turn(queue)))
        except TimeoutError:
            raise connection.late(name_of(lun), within_s) from None

    async def task_management(
        self, function: TaskManagement, lun: int = 0, tag: int = RESERVED_TAG
    ) -> int:
        """Ask for a task management function; the response (RFC 7143 section 11.6.1), 0 for done.

        `tag` names the task of ABORT TASK and QUERY TASK: `Command.tag`. Commands of this session
        that the function has ended get no answer from the target; here they end with TaskAborted.
        Raises ConnectionLost, RequestRejected, TimedOut.
        """
        connection = self._connected
        raw_lun = encode_lun(lun)
        concerned = concerned_by(function, connection.engine, raw_lun, tag)
        _, answer = connection.ask(lambda engine: engine.task_management(function, raw_lun, tag))
        response = (await connection.wait(answer, function.name, self.timeout_s)).response
        if response in (_DONE, _NO_SUCH_TASK):
            for ended in concerned:
                connection.give_up(ended, TaskAborted(f"ended by {function.name}"))
        return int(response)

    async def ping(self) -> None:
        """NOP-Out, and wait for its NOP-In. Raises ConnectionLost, RequestRejected, TimedOut."""
        connection = self._connected
        _, answer = connection.ask(InitiatorConnection.nop_out)
        await connection.wait(answer, "a ping", self.timeout_s)

    # Everyday commands. Each raises CommandFailed unless GOOD, and what `execute` raises.

    async def good(
        self,
        name: str,
        lun: int,
        cdb: bytes,
        *,
        data_out: Buffer = b"",
        read_length: int = 0,
        attribute: int = TaskAttribute.SIMPLE,
    ) -> bytes:
        """Send a command that must end GOOD; its data-in. `name` is for the error.

        Raises CommandFailed, and what `execute` raises.
        """
        result = await self.execute(
            lun, cdb, data_out=data_out, read_length=read_length, attribute=attribute
        )
        if not result.good:
            raise CommandFailed(name, lun, result)
        return result.data

    async def ready(self, lun: int) -> list[tuple[int, int]]:
        """TEST UNIT READY until it is GOOD; the unit attentions seen, as (ASC, ASCQ).

        Raises CommandFailed for anything that is no unit attention.
        """
        seen: list[tuple[int, int]] = []
        while True:
            result = await self.execute(lun, commands.test_unit_ready())
            if result.good:
                return seen
            sense = result.sense
            if sense is None or not sense.is_unit_attention or len(seen) == ATTENTIONS_MAXIMUM:
                raise CommandFailed("TEST UNIT READY", lun, result)
            seen.append(sense.code)

    async def report_luns(self) -> list[int]:
        """The numbers of the logical units that this nexus may address (SPC-5, REPORT LUNS)."""
        raw = await self._whole("REPORT LUNS", 0, commands.report_luns, answers.lun_list_length)
        return answers.decode_luns(raw)

    async def inquiry(self, lun: int) -> bytes:
        """Standard INQUIRY data (SPC-5 clause 6.6.2), at least 36 bytes."""
        length = _INQUIRY_LENGTH
        data = await self.good("INQUIRY", lun, commands.inquiry(length), read_length=length)
        return data[: answers.inquiry_length(data)]

    async def vital_product_data(self, lun: int, page: int) -> bytes:
        """A whole vital product data page with its header (SPC-5 clause 7.7)."""
        return await self._whole(
            f"INQUIRY page {page:02X}h",
            lun,
            lambda length: commands.inquiry(length, page),
            lambda raw: answers.page_length(raw, page),
        )

    async def capacity(self, lun: int) -> answers.Capacity:
        """READ CAPACITY(16). `read` and `write` take the block size from the last one."""
        length = answers.CAPACITY_LENGTH
        cdb = commands.read_capacity_16(length)
        raw = await self.good("READ CAPACITY(16)", lun, cdb, read_length=length)
        capacity = answers.decode_capacity(raw)
        self._block_sizes[lun] = capacity.block_size
        return capacity

    async def read(self, lun: int, lba: int, block_count: int) -> bytes:
        """Read blocks, by one READ(16). BadAnswer where fewer came."""
        length = block_count * await self._block_size(lun)
        cdb = commands.read_16(lba, block_count)
        data = await self.good("READ(16)", lun, cdb, read_length=length)
        if len(data) != length:
            raise BadAnswer(f"READ(16): {len(data)} bytes instead of {length}")
        return data

    async def write(self, lun: int, lba: int, data: Buffer, *, fua: bool = False) -> None:
        """Write whole blocks, by one WRITE(16); `fua`: they are on the medium before it returns.

        Raises ValueError for a part of a block.
        """
        block_size = await self._block_size(lun)
        if len(data) % block_size:
            raise ValueError(f"{len(data)} bytes are not whole blocks of {block_size} bytes")
        cdb = commands.write_16(lba, len(data) // block_size, fua=fua)
        await self.good("WRITE(16)", lun, cdb, data_out=data)

    async def flush(self, lun: int) -> None:
        """SYNCHRONIZE CACHE(10): what was written before is on the medium."""
        await self.good("SYNCHRONIZE CACHE(10)", lun, commands.synchronize_cache_10())

    async def _block_size(self, lun: int) -> int:
        return self._block_sizes.get(lun) or (await self.capacity(lun)).block_size

    async def _whole(
        self,
        name: str,
        lun: int,
        cdb: Callable[[int], bytes],
        length_of: Callable[[bytes], int],
    ) -> bytes:
        """An answer that tells its own length, asked again where it is longer than most."""
        length = _ALLOCATION_LENGTH
        data = await self.good(name, lun, cdb(length), read_length=length)
        if length_of(data) > length:
            whole = min(length_of(data), _ALLOCATION_LENGTH_MAXIMUM)
            data = await self.good(name, lun, cdb(whole), read_length=whole)
        if length_of(data) > len(data):
            raise BadAnswer(f"{name}: {len(data)} bytes of {length_of(data)}")
        return data[: length_of(data)]


class Connecting:
    """A login to come: `await` it for the session, or `async with` it for a block."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __await__(self) -> Generator[Any, None, Session]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Session:
        await self._session.reconnect()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()
