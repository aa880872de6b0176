"""What has to be so before a check can begin; every check starts from the same clean state.

A gate brings it about or raises Skipped with the reason. Where the target stopped answering, the
first gate to notice says so as a Finding, and every later one skips.
"""

from ..client import Capacity, ClientError
from ..client.answers import decode_capacity, decode_luns
from . import requests
from .model import Finding, Skipped
from .nodes import Nexus
from .pr import read_keys
from .requests import Request, good
from .rig import KEY_MARK, Disk, Rig
from .wording import describe_keys

_DISK_TYPE = 0x00  # peripheral qualifier 0, device type 0 (SPC-5)
_DISKS_MAXIMUM = 32  # more are not looked at
_REPORT_LUNS_LENGTH = 16 << 10
_WRITE_PROTECT = 0x80  # device specific parameter (SBC-4, Mode parameter header)
_BEGINNING_BYTES = 128 << 10  # file systems have their first structures within these


async def first_node(rig: Rig) -> None:
    """Node 1 has a session."""
    await _connected(rig, [rig.first])


async def all_nodes(rig: Rig) -> None:
    """Every node has a session, and nothing that it was told is left over."""
    await _connected(rig, [node.nexus for node in rig.nodes])


async def _connected(rig: Rig, nexuses: list[Nexus]) -> None:
    if rig.gave_up:
        raise Skipped(rig.gave_up, prevented=True)
    for nexus in nexuses:
        if nexus.connected:
            continue
        try:
            await nexus.connect()
        except ClientError as error:
            rig.gave_up = f"{nexus} could not log in: {error}"
            raise Finding(rig.gave_up, "a session for every node") from None


async def disk(rig: Rig) -> None:
    """There is a disk, and every nexus uses it."""
    await first_node(rig)
    if rig.disk is not None:
        return
    rig.disks = rig.disks or await _disks(rig.first)
    wanted = rig.options.url.lun
    if wanted is not None and wanted not in rig.disks:
        found = ", ".join(map(str, rig.disks)) or "none"
        raise Skipped(f"LUN {wanted} is no disk of this target (disks: {found})", prevented=True)
    if not rig.disks:
        raise Skipped("the target shows no disk to these nodes", prevented=True)
    rig.use_lun(rig.disks[0] if wanted is None else wanted)
    await rig.first.take_attentions()
    capacity = await read_capacity(rig.first)
    rig.disk = Disk(capacity.block_size, capacity.block_count, capacity.thin, capacity.reads_zeroes)


async def _disks(nexus: Nexus) -> list[int]:
    """The LUNs behind which INQUIRY says that there is a disk."""
    listing = await good(
        nexus.send(requests.report_luns(_REPORT_LUNS_LENGTH), lun=0), "REPORT LUNS"
    )
    found: list[int] = []
    for lun in decode_luns(bytes(listing.data)):
        answer = await nexus.send(requests.inquiry(), lun=lun)
        if answer.good and answer.data[:1] == bytes([_DISK_TYPE]):
            found.append(lun)
        if len(found) == _DISKS_MAXIMUM:
            break
    return sorted(found)


async def read_capacity(nexus: Nexus) -> Capacity:
    """READ CAPACITY(16). Raises Finding, BadAnswer."""
    answer = await good(nexus.send(requests.read_capacity_16()), f"READ CAPACITY(16) by {nexus}")
    return decode_capacity(bytes(answer.data))


async def mode_data(nexus: Nexus, request: Request) -> bytes:
    """What a MODE SENSE(6) answers, from its header on. Raises Finding."""
    data = bytes((await good(nexus.send(request), request.name)).data)
    if len(data) < 4 or data[0] + 1 < len(data):
        raise Finding(f"{request.name}: {len(data)} bytes", "a header and what it announces")
    return data


async def write_protected(nexus: Nexus) -> bool:
    """WP of the device specific parameter (SBC-4, Mode parameter header). Raises Finding."""
    data = await mode_data(nexus, requests.mode_sense_6(requests.CACHING_PAGE))
    return bool(data[2] & _WRITE_PROTECT)


async def calm(rig: Rig) -> None:
    """All nodes are connected to the disk, and no unit attention is left over from before."""
    await all_nodes(rig)
    await disk(rig)
    for nexus in rig.nexuses():
        if nexus.connected:
            await nexus.take_attentions()


async def free_disk(rig: Rig) -> None:
    """Nobody has a registration on the disk, neither others nor, any more, these nodes.

    Nor does it look as if a host used it without.
    """
    await all_nodes(rig)
    await disk(rig)
    if rig.in_use:
        raise Skipped(rig.in_use, prevented=True)
    try:
        await _remove_leftovers(rig)
        others = await rig.strangers()
    except Finding as problem:
        raise Skipped(f"reservations cannot be read: {problem}", prevented=True) from None
    if others:
        rig.in_use = (
            f"the disk is in use: others are registered ({describe_keys(others)}); validation never"
            " touches reservations that are not its own"
        )
    elif not rig.may_be_registered and await _may_be_used(rig):
        rig.in_use = (
            "the disk holds data, and a host that uses it would be locked out for moments; if none"
            " does, run again with --idle"
        )
    if rig.in_use:
        raise Skipped(rig.in_use, prevented=True)
    rig.may_be_registered = True
    await rig.unregister_all()
    await calm(rig)
    if rig.options.allow_writes and rig.scratch_before is None:
        rig.scratch_before = await rig.read_scratch(rig.first)


async def _may_be_used(rig: Rig) -> bool:
    """Whether there is anything at the beginning of the disk, where file systems begin."""
    assert rig.disk is not None
    if rig.options.idle:
        return False
    block_count = min(rig.disk.block_count, -(-_BEGINNING_BYTES // rig.disk.block_size))
    request = requests.read(0, block_count, rig.disk.block_size)
    return any((await good(rig.first.send(request), request.name)).data)


async def _remove_leftovers(rig: Rig) -> None:
    """What an earlier run left registered for the same nexuses, because it was killed."""
    if rig.may_be_registered:
        return
    _, keys = await read_keys(rig.first)
    if any(key & 0xFFFF_FFFF == KEY_MARK for key in keys):
        await rig.unregister_own_nexuses()


async def second_paths(rig: Rig) -> None:
    """Nodes 1 and 2 have a second nexus each, through another portal if there is one."""
    try:
        for node in rig.nodes[:2]:
            await rig.second_path(node)
    except ClientError as error:
        raise Skipped(f"a second session of one node is refused: {error}", prevented=True) from None
    await calm(rig)


async def third_nexus(rig: Rig) -> None:
    """There is a nexus besides the usual ones of nodes 1 and 2."""
    if len(rig.nodes) == 2:
        await second_paths(rig)


async def unprotected(rig: Rig) -> None:
    """The disk takes writes: that it does not is told once, by the check `writable`."""
    try:
        protected = await write_protected(rig.first)
    except Finding:
        return  # the checks of the mode pages say so
    if protected:
        raise Skipped("the disk is write protected (WP=1), no write can succeed", prevented=True)


async def writes(rig: Rig) -> None:
    """Writing is allowed. Comes after `free_disk`, which keeps what the scratch blocks hold."""
    await unprotected(rig)
    if not rig.options.allow_writes:
        raise Skipped("writes to the disk; run again with --allow-writes")
