"""A SCSI command under way: its handle, how it is queued, and what task management makes of it."""

from collections.abc import Callable, Generator
from typing import Any

from ..iscsi.constants import TaskManagement
from ..iscsi.initiator import InitiatorConnection
from ..iscsi.responses import Buffer
from .connection import Answer, Connection
from .lun import encode_lun
from .result import Result

_ENDS_ALL = frozenset(
    {
        TaskManagement.TARGET_WARM_RESET,
        TaskManagement.TARGET_COLD_RESET,
        TaskManagement.I_T_NEXUS_RESET,
    }
)
_ENDS_THOSE_OF_THE_LUN = frozenset(
    {
        TaskManagement.ABORT_TASK_SET,
        TaskManagement.CLEAR_TASK_SET,
        TaskManagement.LOGICAL_UNIT_RESET,
    }
)


class Command:
    """A SCSI command under way. Await it for its Result; `tag` names it to task management.

    It may be awaited often and by several; cancelling who waits does not abort it.
    """

    __slots__ = ("_answer", "_connection", "_timeout_s", "lun", "tag")

    def __init__(
        self, connection: Connection, tag: int, answer: Answer, lun: int, timeout_s: float
    ) -> None:
        self.tag = tag
        self.lun = lun
        self._connection = connection
        self._answer = answer
        self._timeout_s = timeout_s

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._answer.done()

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    async def result(self, timeout_s: float | None = None) -> Result:
        """What the target answered. Raises ConnectionLost, RequestRejected, TaskAborted, TimedOut.

        The time runs from now. After TimedOut the command may still end.
        """
        within_s = self._timeout_s if timeout_s is None else timeout_s
        event = await self._connection.wait(self._answer, name_of(self.lun), within_s)
        return Result.of(event)


def name_of(lun: int) -> str:
    """What a message calls a command."""
    return f"a command to LUN {lun}"


def queue_command(
    lun: int,
    cdb: bytes,
    data_out: Buffer,
    read_length: int,
    attribute: int,
    *,
    immediate: bool = False,
) -> Callable[[InitiatorConnection], int]:
    """What queues a command. Raises ValueError."""
    if len(data_out) and read_length:
        raise ValueError("a command moves data in one direction")
    # The target may ask for the data after the caller has given up and used its memory again.
    stable = data_out if isinstance(data_out, bytes) else bytes(data_out)
    raw_lun = encode_lun(lun)
    return lambda engine: engine.command(
        raw_lun,
        cdb,
        data_out=stable,
        read_length=read_length,
        attribute=attribute,
        immediate=immediate,
    )


def concerned_by(
    function: TaskManagement, engine: InitiatorConnection, raw_lun: int, tag: int
) -> list[int]:
    """The tags of the commands that a function ends: they are with the target already."""
    if function is TaskManagement.ABORT_TASK:
        return [tag] if tag in engine.commands else []
    if function not in _ENDS_ALL | _ENDS_THOSE_OF_THE_LUN:
        return []
    return [
        itt
        for itt, pending in engine.commands.items()
        if (function in _ENDS_ALL or pending.lun == raw_lun) and not engine.writer.is_waiting(itt)
    ]
