"""Checks of thin provisioning and copy offload, where the target offers them.

What is offered must fit together: Windows believes each page by itself.
"""

import struct

from . import requests
from .device import BLOCK_LIMITS, PROVISIONING
from .gates import calm, disk, free_disk, read_capacity, writes
from .identity import page_if_listed
from .model import Area, Check, Finding, Importance, Skipped
from .requests import good
from .rig import SCRATCH_BLOCKS, Disk, Rig

_THIRD_PARTY_COPY = 0x8F
_LBPU = 0x80
_TYPE_MASK, _FULL = 0x07, 0
_UNMAP_LIMITS = slice(16, 24)  # MAXIMUM UNMAP LBA COUNT, ... BLOCK DESCRIPTOR COUNT of page B0h
_STATUS_HEADER_LENGTH = 8
_3PC = 0x08

# SPC-5, Third-party Copy VPD page: descriptor types, and the commands that ODX consists of
_ROD_TOKEN_LIMITS, _SUPPORTED_COMMANDS = 0x0000, 0x0001
_ODX_COMMANDS = {
    (0x83, 0x10): "POPULATE TOKEN",
    (0x83, 0x11): "WRITE USING TOKEN",
    (0x84, 0x07): "RECEIVE ROD TOKEN INFORMATION",
}


async def consistent(rig: Rig) -> str:
    """READ CAPACITY(16), pages B2h and B0h tell one story."""
    capacity = await read_capacity(rig.first)
    page = await page_if_listed(rig.first, PROVISIONING)
    unmaps = page is not None and len(page) >= 2 and bool(page[1] & _LBPU)
    if not capacity.thin:
        if unmaps:
            raise Finding("LBPU=1 in page B2h, LBPME=0", "LBPME=1, or no LBPU")
        raise Skipped("the disk is fully provisioned (LBPME=0)")
    if page is None or len(page) < 3:
        raise Finding("LBPME=1, and no page B2h", "page B2h: Windows does not see a thin disk")
    kind = page[2] & _TYPE_MASK
    if kind == _FULL:
        raise Finding("LBPME=1, provisioning type 0", "type 1 or 2 in page B2h")
    if unmaps:
        await _expect_unmap_limits(rig)
    return f"LBPME=1, provisioning type {kind}, LBPU={unmaps:d}, LBPRZ={capacity.reads_zeroes:d}"


async def _expect_unmap_limits(rig: Rig) -> None:
    page = await page_if_listed(rig.first, BLOCK_LIMITS)
    if page is None or len(page) < _UNMAP_LIMITS.stop:
        raise Finding("LBPU=1, and no UNMAP limits in page B0h", "limits of more than zero")
    blocks, descriptors = struct.unpack(">II", page[_UNMAP_LIMITS])
    if not blocks or not descriptors:
        raise Finding(f"LBPU=1, UNMAP of {blocks} blocks, {descriptors} ranges", "more than zero")


async def lba_status(rig: Rig) -> str:
    """GET LBA STATUS of the scratch blocks, which moves nothing."""
    thin = await _thin(rig)
    request = requests.get_lba_status(thin.scratch_lba)
    data = bytes((await good(rig.first.send(request), request.name)).data)
    if len(data) < _STATUS_HEADER_LENGTH + 16:
        raise Finding(f"{len(data)} bytes", "a descriptor for the block that was asked for")
    lba, count, status = struct.unpack_from(">QIB", data, _STATUS_HEADER_LENGTH)
    if not lba <= thin.scratch_lba < lba + count:
        raise Finding(
            f"a descriptor of {count} blocks from LBA {lba}", f"one with LBA {thin.scratch_lba}"
        )
    return f"LBA {thin.scratch_lba}: provisioning status {status & 0x0F}"


async def _thin(rig: Rig) -> Disk:
    assert rig.disk is not None
    if not rig.disk.thin:
        raise Skipped("the disk is fully provisioned (LBPME=0)")
    return rig.disk


async def unmap(rig: Rig) -> str:
    """UNMAP of the scratch blocks: they may read as zeroes, the blocks beside them must not."""
    thin = await _thin(rig)
    page = await page_if_listed(rig.first, PROVISIONING)
    if page is None or len(page) < 2 or not page[1] & _LBPU:
        raise Skipped("UNMAP is not offered (LBPU=0)")
    await rig.write_scratch(rig.first, b"\xa5" * (SCRATCH_BLOCKS * thin.block_size))
    written = await rig.read_scratch(rig.first)
    beside = await _blocks_beside(rig, thin)
    request = requests.unmap((thin.scratch_lba, SCRATCH_BLOCKS))
    await good(rig.first.send(request), request.name)
    left = await rig.read_scratch(rig.nodes[1].nexus)
    if await _blocks_beside(rig, thin) != beside:
        raise Finding("blocks beside the range changed", "only the range is unmapped")
    zeroes = bytes(len(left))
    if left == zeroes:
        return "the blocks read as zeroes"
    if left != written and thin.reads_zeroes:
        raise Finding("the blocks hold neither zeroes nor what was written", "LBPRZ=1: zeroes")
    return "accepted; the range is smaller than what the disk can deallocate"


async def _blocks_beside(rig: Rig, thin: Disk) -> list[bytes]:
    found = []
    for lba in (thin.scratch_lba - 1, thin.scratch_lba + SCRATCH_BLOCKS):
        if 0 <= lba < thin.block_count:
            request = requests.read(lba, 1, thin.block_size)
            found.append(bytes((await good(rig.first.send(request), request.name)).data))
    return found


async def copy_offload(rig: Rig) -> str:
    """Page 8Fh turns ODX on in Windows: what it promises must be complete."""
    page = await page_if_listed(rig.first, _THIRD_PARTY_COPY)
    if page is None:
        raise Skipped("ODX is not offered (page 8Fh is not listed)")
    inquiry = bytes((await good(rig.first.send(requests.inquiry()), "INQUIRY")).data)
    if len(inquiry) < 6 or not inquiry[5] & _3PC:
        raise Finding("page 8Fh is listed, 3PC=0 in INQUIRY", "3PC=1")
    found = _descriptors(page)
    if _ROD_TOKEN_LIMITS not in found:
        raise Finding("no block device ROD token limits", "descriptor 0000h: Windows needs it")
    commands = _supported_commands(found.get(_SUPPORTED_COMMANDS, b""))
    if missing := [name for code, name in _ODX_COMMANDS.items() if code not in commands]:
        raise Finding(f"without {', '.join(missing)}", "the three commands of ODX")
    return f"{len(found)} descriptors, all commands of ODX"


def _descriptors(page: bytes) -> dict[int, bytes]:
    """Third-party copy descriptors by type. Raises Finding."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(page):
        if len(page) - offset < 4:
            raise Finding("page 8Fh ends within a descriptor", "whole descriptors")
        kind, length = struct.unpack_from(">HH", page, offset)
        end = offset + 4 + length
        if end > len(page):
            raise Finding(f"descriptor {kind:04X}h reaches beyond page 8Fh", "whole descriptors")
        found[kind] = page[offset + 4 : end]
        offset = end
    return found


def _supported_commands(descriptor: bytes) -> set[tuple[int, int]]:
    """Operation codes with their service actions (SPC-5, Supported Commands descriptor)."""
    found: set[tuple[int, int]] = set()
    listed = descriptor[1 : 1 + descriptor[0]] if descriptor else b""
    while len(listed) >= 2:
        opcode, count = listed[:2]
        found.update((opcode, action) for action in listed[2 : 2 + count])
        listed = listed[2 + count :]
    return found


CHECKS = (
    Check(
        "thin",
        Area.PROVISIONING,
        "What is said of thin provisioning fits together",
        "Windows sees a thin disk where there is one, and unmaps only what can be unmapped",
        "SBC-4, Logical block provisioning management",
        Importance.RECOMMENDED,
        consistent,
        (disk,),
    ),
    Check(
        "lba-status",
        Area.PROVISIONING,
        "GET LBA STATUS answers",
        "it can be asked which blocks are mapped",
        "SBC-4, GET LBA STATUS command",
        Importance.RECOMMENDED,
        lba_status,
        (calm,),
    ),
    Check(
        "unmap",
        Area.PROVISIONING,
        "UNMAP touches nothing but its range",
        "deleted files give their space back and no other data is lost",
        "SBC-4, UNMAP command",
        Importance.REQUIRED,
        unmap,
        (free_disk, writes),
    ),
    Check(
        "odx",
        Area.PROVISIONING,
        "Copy offload is complete where it is offered",
        "Windows copies by the target's own means without falling back",
        "SPC-5, Third-party Copy VPD page",
        Importance.RECOMMENDED,
        copy_offload,
        (disk,),
    ),
)
