"""The currency of the device server: an I_T nexus, a Task in, a Result out (SAM-6 clause 5)."""

from collections.abc import Callable, Coroutine, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

Buffer = bytes | bytearray | memoryview


class Status(IntEnum):
    """SAM-6 table 36, status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class TaskAttribute(IntEnum):
    """SAM-6 clause 8.6; the values are those of RFC 7143 section 11.3.1."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class Nexus:
    """One I_T nexus: which initiator port talks through which target port.

    `key` identifies it across connections and restarts: SCSI initiator port name
    (`iqn...,i,0x<isid>`) and relative target port. `luns` maps the LUN's number to the logical
    unit that this initiator sees; the server fills it and changes it on reload.
    """

    __slots__ = (
        "initiator_name",
        "initiator_port_name",
        "key",
        "luns",
        "relative_target_port",
        "target_port_name",
    )

    def __init__(
        self,
        initiator_name: str,
        initiator_port_name: str,
        target_port_name: str,
        relative_target_port: int,
        luns: "dict[int, LogicalUnit]",
    ) -> None:
        self.initiator_name = initiator_name
        self.initiator_port_name = initiator_port_name
        self.target_port_name = target_port_name
        self.relative_target_port = relative_target_port
        self.luns = luns
        self.key = (initiator_port_name, relative_target_port)


def fresh_buffer(length_bytes: int) -> memoryview:
    """A zeroed buffer of its own."""
    return memoryview(bytearray(length_bytes))


class Task:
    """One command on its way through a logical unit.

    `lun` is the eight-byte LUN as an unsigned integer (SAM-6 clause 4.7); `cdb` holds at least 16
    bytes, padded with zeroes; `data_out` is all that the initiator transferred, in order. The
    transport owns the memory of `data_out` until the task is answered: a coroutine that outlives
    `execute` may keep it only because the transport copied it (`data_out_is_stable`).
    `allocate(n)` gives a buffer of n bytes for data-in that is valid until it was sent; only code
    that finishes within `execute` may use it, a coroutine takes `fresh_buffer` instead.
    `aborted`: no response is sent, unless `answer_aborted` asks for TASK ABORTED (TAS=1).
    """

    __slots__ = (
        "aborted",
        "allocate",
        "answer_aborted",
        "attribute",
        "cdb",
        "data_out",
        "data_out_is_stable",
        "lun",
        "nexus",
        "on_abort",
        "tag",
    )

    def __init__(
        self,
        nexus: Nexus,
        lun: int,
        cdb: bytes,
        data_out: Sequence[Buffer] = (),
        attribute: int = TaskAttribute.SIMPLE,
        tag: int = 0,
        allocate: Callable[[int], memoryview] = fresh_buffer,
    ) -> None:
        self.nexus = nexus
        self.lun = lun
        self.cdb = cdb
        self.data_out = data_out
        self.data_out_is_stable = False
        self.attribute = attribute
        self.tag = tag
        self.allocate = allocate
        self.aborted = False
        self.answer_aborted = False
        self.on_abort: Callable[[], None] | None = None


class Result:
    """A task's answer.

    `data` is the data-in (None: none), already truncated to the CDB's
    allocation length; `sense` the sense data of a CHECK CONDITION. `data_out_length` is how many
    bytes of data-out the CDB asks for (None: as many as came); the transport derives residuals.
    """

    __slots__ = ("data", "data_out_length", "sense", "status")

    def __init__(
        self,
        status: int = Status.GOOD,
        data: Buffer | None = None,
        sense: bytes = b"",
        data_out_length: int | None = None,
    ) -> None:
        self.status = status
        self.data = data
        self.sense = sense
        self.data_out_length = data_out_length


Outcome = Result | Coroutine[Any, Any, Result]
