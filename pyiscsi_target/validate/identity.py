"""Checks of who a disk is: the same to every node, on every path, for ever, and no other's.

A cluster stores what page 83h says and finds its disks again by it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..client.answers import page_length
from ..scsi.vpd import (
    ASSOCIATION_LOGICAL_UNIT,
    ASSOCIATION_TARGET_PORT,
    CODE_SET_BINARY,
    CODE_SET_UTF8,
    DESIGNATOR_EUI64,
    DESIGNATOR_NAA,
    DESIGNATOR_RELATIVE_TARGET_PORT,
    DESIGNATOR_SCSI_NAME_STRING,
)
from . import requests
from .gates import all_nodes, calm, disk
from .model import Area, Check, Finding, Importance, Skipped
from .nodes import Nexus
from .requests import good
from .rig import Rig
from .wording import describe_bytes, printable

_PAGE_MAXIMUM = 4096
SUPPORTED_PAGES, SERIAL_NUMBER, DEVICE_IDENTIFICATION = 0x00, 0x80, 0x83
_MANDATORY = (SUPPORTED_PAGES, DEVICE_IDENTIFICATION)

# SPC-5 clause 7.7.6.6: the length of a NAA designator by its first four bits.
_NAA_LENGTHS = {0x2: 8, 0x3: 8, 0x5: 8, 0x6: 16}
_EUI64_LENGTHS = (8, 12, 16)  # SPC-5 clause 7.7.6.5


@dataclass(frozen=True, slots=True)
class Designator:
    """One designation descriptor of page 83h (SPC-5 clause 7.7.6.1)."""

    association: int
    type: int
    code_set: int
    value: bytes

    @property
    def flaw(self) -> str:
        """What keeps a designator from being a world wide name, "" for nothing."""
        if self.type not in _WORLD_WIDE:
            return f"type {self.type} is no world wide name"
        name, code_set = _WORLD_WIDE[self.type]
        if self.code_set != code_set:
            return f"{name} with code set {self.code_set} instead of {code_set}"
        if self.type == DESIGNATOR_NAA:
            length = _NAA_LENGTHS.get(self.value[0] >> 4) if self.value else None
            if length is None:
                return f"NAA of an unknown kind ({describe_bytes(self.value)})"
            return "" if len(self.value) == length else f"NAA of {len(self.value)} bytes"
        if self.type == DESIGNATOR_EUI64:
            fits = len(self.value) in _EUI64_LENGTHS
            return "" if fits else f"EUI-64 of {len(self.value)} bytes"
        known = self.value.startswith((b"naa.", b"eui.", b"iqn."))
        return "" if known else "a SCSI name string that is none"

    def __str__(self) -> str:
        name = _WORLD_WIDE.get(self.type, (f"type {self.type}", 0))[0]
        if self.type == DESIGNATOR_SCSI_NAME_STRING:
            return f"{name} {printable(self.value.rstrip(bytes(1)))}"
        return f"{name} {self.value.hex().upper()}"


_WORLD_WIDE: Mapping[int, tuple[str, int]] = {
    DESIGNATOR_EUI64: ("EUI-64", CODE_SET_BINARY),
    DESIGNATOR_NAA: ("NAA", CODE_SET_BINARY),
    DESIGNATOR_SCSI_NAME_STRING: ("SCSI name", CODE_SET_UTF8),
}


# Reading pages


async def read_page(nexus: Nexus, page: int, *, lun: int | None = None) -> bytes:
    """The content of a vital product data page, after its header. Raises Finding."""
    request = requests.inquiry(page, _PAGE_MAXIMUM)
    data = bytes((await good(nexus.send(request, lun=lun), f"{request.name} by {nexus}")).data)
    length = page_length(data, page)
    if len(data) < length:
        raise Finding(f"page {page:02X}h: {len(data)} bytes, PAGE LENGTH {length - 4}", "all of it")
    return data[4:length]


async def page_if_listed(nexus: Nexus, page: int) -> bytes | None:
    """A page, None where page 00h does not list it. Raises Finding."""
    listed = await read_page(nexus, SUPPORTED_PAGES)
    return await read_page(nexus, page) if page in listed else None


def parse_designators(content: bytes) -> list[Designator]:
    """Page 83h (SPC-5 clause 7.7.6.1). Raises Finding."""
    found: list[Designator] = []
    offset = 0
    while offset < len(content):
        header = content[offset : offset + 4]
        end = offset + 4 + (header[3] if len(header) == 4 else 0)
        if len(header) < 4 or end > len(content):
            raise Finding(
                f"page 83h: a descriptor at byte {offset} that reaches beyond the page",
                "descriptors that fill the page to its end",
            )
        value = content[offset + 4 : end]
        found.append(Designator(header[1] >> 4 & 3, header[1] & 0x0F, header[0] & 0x0F, value))
        offset = end
    return found


async def designators(nexus: Nexus, *, lun: int | None = None) -> list[Designator]:
    """What page 83h says through a nexus. Raises Finding."""
    return parse_designators(await read_page(nexus, DEVICE_IDENTIFICATION, lun=lun))


def names_of_unit(found: list[Designator]) -> list[Designator]:
    """The world wide names among them that are the logical unit's and that are sound."""
    return [d for d in found if d.association == ASSOCIATION_LOGICAL_UNIT and not d.flaw]


@dataclass(frozen=True, slots=True)
class _Face:
    """All that must be the same whoever asks, however often."""

    unit: frozenset[Designator]
    serial: bytes | None

    def __str__(self) -> str:
        serial = "no serial number" if self.serial is None else f"serial {_text(self.serial)}"
        names = [str(d) for d in self.unit if d.type in _WORLD_WIDE] or map(str, self.unit)
        return f"{', '.join(sorted(names)) or 'no designator'}; {serial}"


async def _face(nexus: Nexus, *, lun: int | None = None) -> _Face:
    unit = [
        d for d in await designators(nexus, lun=lun) if d.association == ASSOCIATION_LOGICAL_UNIT
    ]
    listed = await read_page(nexus, SUPPORTED_PAGES, lun=lun)
    serial = await read_page(nexus, SERIAL_NUMBER, lun=lun) if SERIAL_NUMBER in listed else None
    return _Face(frozenset(unit), serial)


def _expect_same(before: _Face, after: _Face, when: str) -> None:
    if before != after:
        raise Finding(f"{when}: {after}", f"as before: {before}")


# Checks


async def supported_pages(rig: Rig) -> str:
    """Windows ignores what follows a page out of order."""
    listed = await read_page(rig.first, SUPPORTED_PAGES)
    text = " ".join(f"{page:02X}h" for page in listed)
    if not listed or listed[0] != SUPPORTED_PAGES or list(listed) != sorted(set(listed)):
        raise Finding(text or "an empty list", "00h first, then strictly ascending")
    if missing := [f"{page:02X}h" for page in _MANDATORY if page not in listed]:
        raise Finding(f"{text}: without {', '.join(missing)}", "pages 00h and 83h")
    for page in listed:
        await read_page(rig.first, page)
    return text


async def serial_number(rig: Rig) -> str:
    """Page 80h."""
    serial = await page_if_listed(rig.first, SERIAL_NUMBER)
    if serial is None:
        raise Finding("page 80h is not listed", "a unit serial number")
    if not serial.strip(b" \0") or not all(0x20 <= byte < 0x7F for byte in serial):
        raise Finding(describe_bytes(serial), "printable ASCII, not only spaces")
    return _text(serial)


def _text(serial: bytes) -> str:
    return printable(serial).strip()


async def world_wide_name(rig: Rig) -> str:
    """What a cluster can know the disk by."""
    found = await designators(rig.first)
    unit = [d for d in found if d.association == ASSOCIATION_LOGICAL_UNIT]
    if names := names_of_unit(unit):
        return ", ".join(map(str, names))
    flaws = "; ".join(dict.fromkeys(d.flaw for d in unit)) or "no designator of the logical unit"
    raise Finding(flaws, "an NAA, EUI-64 or SCSI name of the logical unit, in its code set")


async def sound_designators(rig: Rig) -> str:
    """Every designator that claims to be a world wide name is one."""
    found = await designators(rig.first)
    flaws = [d.flaw for d in found if d.type in _WORLD_WIDE and d.flaw]
    if flaws:
        raise Finding("; ".join(flaws), "code sets and lengths of SPC-5 clause 7.7.6")
    return f"{len(found)} designators"


async def unique_names(rig: Rig) -> str:
    """No name twice among the disks of the target."""
    if len(rig.disks) < 2:
        raise Skipped("the target shows one disk only")
    owners: dict[str, int] = {}
    for lun in rig.disks:
        for name in map(str, names_of_unit(await designators(rig.first, lun=lun))):
            other = owners.setdefault(name, lun)
            if other != lun:
                raise Finding(f"LUN {other} and LUN {lun} are both {name}", "a name for each disk")
    return f"{len(owners)} names of {len(rig.disks)} disks, all different"


async def same_for_all_nodes(rig: Rig) -> str:
    """All nodes see one disk."""
    before = await _face(rig.first)
    for node in rig.nodes[1:]:
        _expect_same(before, await _face(node.nexus), f"as {node} sees it")
    return f"{before}, for {len(rig.nodes)} nodes"


async def same_on_every_path(rig: Rig) -> str:
    """Through each portal the disk is the same."""
    if len(rig.paths) < 2:
        raise Skipped("there is one path to the target only")
    before = await _face(rig.first)
    node = rig.nodes[0]
    for portal in rig.paths[1:]:
        probe = rig.probe(node, portal)
        await probe.connect()
        try:
            _expect_same(before, await _face(probe), f"through {portal}")
        finally:
            await probe.log_out()
    return f"{before}, through {len(rig.paths)} portals"


async def same_after_reconnects(rig: Rig) -> str:
    """After a logout and after a lost connection the disk is the same."""
    nexus = rig.nodes[1].nexus
    before = await _face(nexus)
    await nexus.log_out()
    await nexus.connect()
    _expect_same(before, await _face(nexus), "after logout and login")
    nexus.drop()
    await nexus.connect()
    _expect_same(before, await _face(nexus), "after a lost connection")
    return f"{before}, after logout and loss"


async def target_port(rig: Rig) -> str:
    """MPIO tells paths apart by the relative target port."""
    ports = [
        (nexus, _relative_port(await designators(nexus)))
        for nexus in rig.nodes[0].nexuses
        if nexus.connected
    ]
    for (one, here), (other, there) in pairwise(ports):
        if (one.portal == other.portal) != (here == there):
            raise Finding(
                f"relative target port {here} at {one.portal}, {there} at {other.portal}",
                "one number for each portal group, the same for all who use it",
                warns=True,
            )
    return ", ".join(f"{number} at {nexus.portal}" for nexus, number in ports)


def _relative_port(found: list[Designator]) -> int:
    for designator in found:
        if (designator.association, designator.type) == (
            ASSOCIATION_TARGET_PORT,
            DESIGNATOR_RELATIVE_TARGET_PORT,
        ) and len(designator.value) == 4:
            return int(struct.unpack(">xxH", designator.value)[0])
    raise Finding("page 83h names no relative target port", "a designator of type 4")


CHECKS = (
    Check(
        "vpd-pages",
        Area.IDENTITY,
        "The list of vital product data pages is in order",
        "Windows finds every page: it stops at one out of order",
        "SPC-5, Supported VPD Pages",
        Importance.REQUIRED,
        supported_pages,
        (disk,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
    ),
    Check(
        "serial-number",
        Area.IDENTITY,
        "The disk has a serial number",
        "page 80h can be shown and compared",
        "SPC-5, Unit Serial Number VPD page",
        Importance.REQUIRED,
        serial_number,
        (disk,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
    ),
    Check(
        "world-wide-name",
        Area.IDENTITY,
        "The disk has a world wide name",
        "the cluster can find the disk again: a T10 vendor designator alone is not enough",
        "SPC-5 clause 7.7.6",
        Importance.REQUIRED,
        world_wide_name,
        (disk,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
        fix="let the target give the disk an NAA or EUI-64 designator",
    ),
    Check(
        "designators-sound",
        Area.IDENTITY,
        "Its designators are well formed",
        "code sets and lengths are those of their types",
        "SPC-5 clause 7.7.6",
        Importance.RECOMMENDED,
        sound_designators,
        (disk,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
    ),
    Check(
        "names-unique",
        Area.IDENTITY,
        "No two disks share a name",
        "the cluster cannot take one disk for another",
        "SPC-5 clause 7.7.6",
        Importance.REQUIRED,
        unique_names,
        (disk,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
        fix="give each disk an identity of its own",
    ),
    Check(
        "same-for-nodes",
        Area.IDENTITY,
        "All nodes see the same disk",
        "designators and serial number do not depend on who asks",
        "SPC-5 clause 7.7.6",
        Importance.REQUIRED,
        same_for_all_nodes,
        (calm,),
        windows="List Potential Cluster Disks",
    ),
    Check(
        "same-on-paths",
        Area.IDENTITY,
        "The disk is the same on every path",
        "multipath I/O makes one disk of its paths, not two",
        "SPC-5 clause 7.7.6",
        Importance.REQUIRED,
        same_on_every_path,
        (calm,),
        windows="Validate Microsoft MPIO-Based Disks",
    ),
    Check(
        "same-after-reconnect",
        Area.IDENTITY,
        "The disk is the same after reconnects",
        "neither a logout nor a lost connection changes who the disk is",
        "SPC-5 clause 7.7.6",
        Importance.REQUIRED,
        same_after_reconnects,
        (calm,),
        windows="Validate SCSI Device Vital Product Data (VPD)",
    ),
    Check(
        "target-port",
        Area.IDENTITY,
        "Page 83h names the target port",
        "registrations and paths can be told apart by port",
        "SPC-5 clause 7.7.6.7",
        Importance.RECOMMENDED,
        target_port,
        (all_nodes, disk),
        windows="Validate Microsoft MPIO-Based Disks",
    ),
)
