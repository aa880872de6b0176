"""Small builders for tests of the engine's parts: PDUs of every class, and their bytes."""

import re
from typing import Any

from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import FINAL, IMMEDIATE, RESERVED_TAG, CommandFlag
from pyiscsi_target.iscsi.pdu import BY_OPCODE, DataOut, Pdu, ScsiCommand, TaskManagementRequest
from tests.support.memory import RawPeer, frame

READ = CommandFlag.READ
WRITE = CommandFlag.WRITE

_ITEM = re.compile(r"(\d*)([a-z])", re.IGNORECASE)
_WIDTH_BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def _item_values(count: str, kind: str) -> st.SearchStrategy[Any]:
    if kind == "s":
        return st.binary(min_size=int(count), max_size=int(count))
    return st.integers(0, (1 << _WIDTH_BITS[kind]) - 1)


def pdus_of(cls: type[Pdu]) -> st.SearchStrategy[Pdu]:
    """Headers of one class with arbitrary values in every field."""
    items = [item for item in _ITEM.findall(cls.LAYOUT.format) if item[1] != "x"]
    return st.tuples(*(_item_values(*item) for item in items)).map(lambda values: cls(*values))


def any_pdu() -> st.SearchStrategy[Pdu]:
    """Headers of any class; the opcode's byte is the class's own, with or without the I bit."""

    def with_opcode(pdu: Any, immediate: bool) -> Pdu:
        pdu.opcode = pdu.OPCODE | (IMMEDIATE if immediate else 0)
        return pdu  # type: ignore[no-any-return]

    one = st.sampled_from(list(BY_OPCODE.values())).flatmap(pdus_of)
    return st.builds(with_opcode, one, st.booleans())


def read_command(itt: int, cdb: bytes, expected_length: int, **fields: Any) -> ScsiCommand:
    """A SCSI Command that reads."""
    return ScsiCommand(
        flags=FINAL | READ,
        itt=itt,
        cdb=cdb.ljust(16, b"\0"),
        expected_data_transfer_length=expected_length,
        **fields,
    )


def write_command(
    itt: int, cdb: bytes, expected_length: int, *, final: bool = True, **fields: Any
) -> ScsiCommand:
    """A SCSI Command that writes; not `final`: unsolicited Data-Out follows."""
    return ScsiCommand(
        flags=(FINAL if final else 0) | WRITE,
        itt=itt,
        cdb=cdb.ljust(16, b"\0"),
        expected_data_transfer_length=expected_length,
        **fields,
    )


def data_out(
    itt: int, offset: int, data_sn: int = 0, ttt: int = RESERVED_TAG, *, final: bool = True
) -> DataOut:
    """A Data-Out header; unsolicited unless it names a TTT."""
    return DataOut(
        flags=FINAL if final else 0, itt=itt, ttt=ttt, data_sn=data_sn, buffer_offset=offset
    )


def bytes_from(peer: RawPeer, pdu: Pdu, data: bytes = b"") -> bytes:
    """A PDU with the digests that the peer's session uses."""
    return frame(pdu, data, b"", **peer.digests)


def immediate(pdu: Any) -> Any:
    """The same PDU with its I bit set."""
    pdu.opcode |= IMMEDIATE
    return pdu


def manage(function: int, itt: int, **fields: Any) -> TaskManagementRequest:
    """A Task Management Request."""
    return TaskManagementRequest(flags=FINAL | function, itt=itt, **fields)
