"""One layout and one class per PDU of RFC 7143 section 11, used in both directions.

A class's fields are its Struct's items, in order; reserved bytes are pad bytes, so what is reserved
is sent as zero and never read. `opcode` is the whole first byte (with the I bit), `lengths` the
second word (TotalAHSLength in the top byte, DataSegmentLength below it). Knows no connection state.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from struct import Struct
from typing import Any, ClassVar, Protocol, Self, TypeVar

from .constants import (
    BHS_LENGTH,
    FINAL,
    IMMEDIATE,
    OPCODE_MASK,
    RESERVED_TAG,
    Opcode,
    Stage,
)

DATA_SEGMENT_LENGTH_MASK = 0xFFFFFF

LENGTHS = Struct(">4xI")  # a header's second word: what framing needs of it


@dataclass(slots=True)
class Pdu:
    """What every basic header segment has (section 11.2.1)."""

    LAYOUT: ClassVar[Struct]
    OPCODE: ClassVar[Opcode]
    _items: ClassVar[Callable[[Any], tuple[Any, ...]]]

    @classmethod
    def unpack(cls, buffer: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """The header at `offset`; at least 48 bytes must be there."""
        return cls(*cls.LAYOUT.unpack_from(buffer, offset))

    def pack(self) -> bytes:
        """The 48 bytes of this header."""
        return self.LAYOUT.pack(*type(self)._items(self))


class TargetPdu(Protocol):
    """What every PDU from a target carries: the command window (section 4.2.2.1)."""

    lengths: int
    exp_cmd_sn: int
    max_cmd_sn: int

    def pack(self) -> bytes:
        """The 48 bytes of the header."""
        ...


BY_OPCODE: dict[int, type[Pdu]] = {}
_P = TypeVar("_P", bound=Pdu)


def _layout(opcode: Opcode, layout: str) -> Callable[[type[_P]], type[_P]]:
    """Class decorator: the Struct of a PDU, checked against the header's size."""

    def attach(cls: type[_P]) -> type[_P]:
        cls.LAYOUT = Struct(">" + layout)
        assert cls.LAYOUT.size == BHS_LENGTH, cls
        cls.OPCODE = opcode
        first, *others = (item.name for item in fields(cls))
        cls._items = attrgetter(first, *others)
        BY_OPCODE[opcode] = cls
        return cls

    return attach


def data_segment_length(lengths: int) -> int:
    """DataSegmentLength in bytes, of a header's second word."""
    return lengths & DATA_SEGMENT_LENGTH_MASK


@_layout(Opcode.NOP_OUT, "BB2xIQIIII16x")
@dataclass(slots=True)
class NopOut(Pdu):
    """Section 11.18."""

    opcode: int = Opcode.NOP_OUT
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = RESERVED_TAG
    ttt: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@_layout(Opcode.NOP_IN, "BB2xIQIIIII12x")
@dataclass(slots=True)
class NopIn(Pdu):
    """Section 11.19."""

    opcode: int = Opcode.NOP_IN
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = RESERVED_TAG
    ttt: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@_layout(Opcode.SCSI_COMMAND, "BB2xIQIIII16s")
@dataclass(slots=True)
class ScsiCommand(Pdu):
    """Section 11.3."""

    opcode: int = Opcode.SCSI_COMMAND
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    expected_data_transfer_length: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    cdb: bytes = bytes(16)


@_layout(Opcode.SCSI_RESPONSE, "BBBBI8xIIIIIIII")
@dataclass(slots=True)
class ScsiResponse(Pdu):
    """Section 11.4."""

    opcode: int = Opcode.SCSI_RESPONSE
    flags: int = FINAL
    response: int = 0
    status: int = 0
    lengths: int = 0
    itt: int = 0
    snack_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    exp_data_sn: int = 0
    bidirectional_read_residual: int = 0
    residual: int = 0


@_layout(Opcode.TASK_MANAGEMENT_REQUEST, "BB2xIQIIIIII8x")
@dataclass(slots=True)
class TaskManagementRequest(Pdu):
    """Section 11.5; the function is in the low seven bits of `flags`."""

    opcode: int = Opcode.TASK_MANAGEMENT_REQUEST
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    referenced_task_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0


@_layout(Opcode.TASK_MANAGEMENT_RESPONSE, "BBBxI8xI4xIII12x")
@dataclass(slots=True)
class TaskManagementResult(Pdu):
    """Section 11.6."""

    opcode: int = Opcode.TASK_MANAGEMENT_RESPONSE
    flags: int = FINAL
    response: int = 0
    lengths: int = 0
    itt: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@_layout(Opcode.DATA_OUT, "BB2xIQII4xI4xII4x")
@dataclass(slots=True)
class DataOut(Pdu):
    """Section 11.7."""

    opcode: int = Opcode.DATA_OUT
    flags: int = 0
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    ttt: int = RESERVED_TAG
    exp_stat_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0


@_layout(Opcode.DATA_IN, "BBxBIQIIIIIIII")
@dataclass(slots=True)
class DataIn(Pdu):
    """Section 11.7."""

    opcode: int = Opcode.DATA_IN
    flags: int = 0
    status: int = 0
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    ttt: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0
    residual: int = 0


@_layout(Opcode.R2T, "BB2xIQIIIIIIII")
@dataclass(slots=True)
class ReadyToTransfer(Pdu):
    """Section 11.8."""

    opcode: int = Opcode.R2T
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    ttt: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    r2t_sn: int = 0
    buffer_offset: int = 0
    desired_length: int = 0


@_layout(Opcode.ASYNC_MESSAGE, "BB2xIQI4xIIIBBHHH4x")
@dataclass(slots=True)
class AsyncMessage(Pdu):
    """Section 11.9."""

    opcode: int = Opcode.ASYNC_MESSAGE
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    event: int = 0
    vendor_code: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0


@_layout(Opcode.TEXT_REQUEST, "BB2xIQIIII16x")
@dataclass(slots=True)
class TextRequest(Pdu):
    """Section 11.10."""

    opcode: int = Opcode.TEXT_REQUEST
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    ttt: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@_layout(Opcode.TEXT_RESPONSE, "BB2xIQIIIII12x")
@dataclass(slots=True)
class TextResponse(Pdu):
    """Section 11.11."""

    opcode: int = Opcode.TEXT_RESPONSE
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = 0
    ttt: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@_layout(Opcode.LOGIN_REQUEST, "BBBBI6sHIH2xII16x")
@dataclass(slots=True)
class LoginRequest(Pdu):
    """Section 11.12; T, C, CSG and NSG share `flags`."""

    opcode: int = Opcode.LOGIN_REQUEST | IMMEDIATE
    flags: int = 0
    version_max: int = 0
    version_min: int = 0
    lengths: int = 0
    isid: bytes = bytes(6)
    tsih: int = 0
    itt: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@_layout(Opcode.LOGIN_RESPONSE, "BBBBI6sHI4xIIIH10x")
@dataclass(slots=True)
class LoginResponse(Pdu):
    """Section 11.13; `status` is class and detail together."""

    opcode: int = Opcode.LOGIN_RESPONSE
    flags: int = 0
    version_max: int = 0
    version_active: int = 0
    lengths: int = 0
    isid: bytes = bytes(6)
    tsih: int = 0
    itt: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int = 0


@_layout(Opcode.LOGOUT_REQUEST, "BB2xI8xIH2xII16x")
@dataclass(slots=True)
class LogoutRequest(Pdu):
    """Section 11.14; the reason is in the low seven bits of `flags`."""

    opcode: int = Opcode.LOGOUT_REQUEST
    flags: int = FINAL
    lengths: int = 0
    itt: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@_layout(Opcode.LOGOUT_RESPONSE, "BBBxI8xI4xIII4xHH4x")
@dataclass(slots=True)
class LogoutResponse(Pdu):
    """Section 11.15."""

    opcode: int = Opcode.LOGOUT_RESPONSE
    flags: int = FINAL
    response: int = 0
    lengths: int = 0
    itt: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    time2wait_s: int = 0
    time2retain_s: int = 0


@_layout(Opcode.SNACK_REQUEST, "BB2xIQII4xI8xII")
@dataclass(slots=True)
class SnackRequest(Pdu):
    """Section 11.16."""

    opcode: int = Opcode.SNACK_REQUEST
    flags: int = FINAL
    lengths: int = 0
    lun: int = 0
    itt: int = RESERVED_TAG
    ttt: int = RESERVED_TAG
    exp_stat_sn: int = 0
    beg_run: int = 0
    run_length: int = 0


@_layout(Opcode.REJECT, "BBBxI8xI4xIIII8x")
@dataclass(slots=True)
class Reject(Pdu):
    """Section 11.17; the data segment holds the rejected header."""

    opcode: int = Opcode.REJECT
    flags: int = FINAL
    reason: int = 0
    lengths: int = 0
    itt: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0


def opcode_of(header: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """The opcode without the I bit."""
    return header[offset] & OPCODE_MASK


def decode(header: bytes | bytearray | memoryview, offset: int = 0) -> Pdu:
    """Any header as its class; KeyError for an opcode that RFC 7143 does not define."""
    return BY_OPCODE[opcode_of(header, offset)].unpack(header, offset)


def stage_flags(current: Stage, following: Stage) -> int:
    """CSG and NSG in their place among a login PDU's flags (section 11.12.3)."""
    return current << 2 | following
