"""PERSISTENT RESERVE IN and OUT by a `Peer`, byte by byte."""

from pyiscsi_target.scsi.task import TaskAttribute
from tests.support.peer import Done, Peer

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)
APTPL, ALL_TG_PT, SPEC_I_PT = 0x01, 0x04, 0x08
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5


async def persistent_reserve_out(
    peer: Peer,
    action: int,
    key: int = 0,
    action_key: int = 0,
    *,
    kind: int = WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    flags: int = 0,
    more: bytes = b"",
    lun: int = 0,
) -> Done:
    """HEAD OF QUEUE and with immediate data, as clusters send it."""
    parameters = key.to_bytes(8) + action_key.to_bytes(8) + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    parameters += more
    cdb = bytes((0x5F, action, kind, 0, 0)) + len(parameters).to_bytes(4) + b"\0"
    return await peer.command(
        cdb,
        data=parameters,
        immediate_bytes=len(parameters),
        attribute=int(TaskAttribute.HEAD_OF_QUEUE),
        lun=lun,
    )


async def reserve_out(peer: Peer, action: int, key: int = 0, action_key: int = 0) -> None:
    """As `persistent_reserve_out`; it must end well."""
    done = await persistent_reserve_out(peer, action, key, action_key)
    assert done.status == 0, done.data.hex()
