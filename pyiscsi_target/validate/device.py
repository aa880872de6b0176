"""Checks of what Windows' disk driver asks a device first, and of the answers that it expects."""

from ..client import Result
from ..client.answers import decode_luns, inquiry_length, lun_list_length
from ..scsi.inquiry import PERIPHERAL_DISK
from . import requests
from .gates import calm, disk, first_node, mode_data, read_capacity, write_protected
from .identity import SUPPORTED_PAGES, page_if_listed, read_page
from .model import Area, Check, Finding, Importance, Skipped
from .nodes import Nexus
from .requests import good, is_illegal_request
from .rig import Rig
from .wording import printable

FIRST_REPORT_LUNS_LENGTH = 16  # what Windows asks for first after a login
_REPORT_LUNS_LENGTH = 16 << 10
_LUN_MAXIMUM = 255  # what Windows uses
_VERSION_MINIMUM = 4  # SPC-2
_ISCSI_VERSION_DESCRIPTOR = 0x0960
_EXCEPTIONS, _ALL_PAGES = 0x1C, 0x3F
_WCE = 0x04  # byte 2 of the caching page
_DPOFUA = 0x10  # device specific parameter
BLOCK_LIMITS, CHARACTERISTICS, PROVISIONING = 0xB0, 0xB1, 0xB2
BLOCK_LIMITS_LENGTHS = (0x24, 0x3C)  # SBC-2 had less, Windows wants the UNMAP fields
_CHARACTERISTICS_LENGTH = 0x3C
_BLOCK_SIZES = (512, 4096)


async def report_luns_truncated(rig: Rig) -> str:
    """The first command of Windows: 16 bytes, which is room for one LUN."""
    request = requests.report_luns(FIRST_REPORT_LUNS_LENGTH)
    result = await good(rig.first.send(request, lun=0), "REPORT LUNS with 16 bytes to LUN 0")
    whole = lun_list_length(bytes(result.data))
    full = await good(
        rig.first.send(requests.report_luns(_REPORT_LUNS_LENGTH), lun=0), "REPORT LUNS"
    )
    if whole != lun_list_length(bytes(full.data)):
        raise Finding(
            f"LUN LIST LENGTH {whole - 8} with 16 bytes, {len(full.data) - 8} with more room",
            "the length of the whole list, however much of it fits",
        )
    if len(result.data) != min(whole, FIRST_REPORT_LUNS_LENGTH):
        raise Finding(f"{len(result.data)} bytes", "16 bytes: as much as was asked for")
    return f"16 of {whole} bytes, {(whole - 8) // 8} LUNs"


async def underflow_residual(rig: Rig) -> str:
    """Room for more than there is: the rest is reported."""
    request = requests.report_luns(_REPORT_LUNS_LENGTH)
    result = await good(rig.first.send(request, lun=0), "REPORT LUNS to LUN 0")
    missing = request.read_length - len(result.data)
    if result.residual_bytes != -missing:
        raise Finding(
            f"{len(result.data)} of {request.read_length} bytes with {_residual(result)}",
            f"an underflow of {missing} bytes",
        )
    return f"{len(result.data)} bytes and {_residual(result)}"


def _residual(result: Result) -> str:
    if not result.residual_bytes:
        return "no residual"
    kind = "overflow" if result.residual_bytes > 0 else "underflow"
    return f"an {kind} of {abs(result.residual_bytes)} bytes"


async def lun_list(rig: Rig) -> str:
    """The LUNs that Windows can use."""
    result = await good(
        rig.first.send(requests.report_luns(_REPORT_LUNS_LENGTH), lun=0), "REPORT LUNS to LUN 0"
    )
    luns = decode_luns(bytes(result.data))
    if odd := [lun for lun in luns if lun > _LUN_MAXIMUM]:
        raise Finding(f"LUN {odd[0]:X}h", "single level LUNs up to 255", warns=True)
    if len(set(luns)) != len(luns):
        raise Finding(f"LUNs {', '.join(map(str, luns))}", "each LUN once")
    return f"LUNs {', '.join(map(str, luns)) or 'none'}; disks {', '.join(map(str, rig.disks))}"


async def lun_0(rig: Rig) -> str:
    """LUN 0 answers INQUIRY whether there is a disk or not."""
    data = bytes((await good(rig.first.send(requests.inquiry(), lun=0), "INQUIRY to LUN 0")).data)
    inquiry_length(data)
    return f"peripheral qualifier and device type {data[0]:02X}h"


async def standard_inquiry(rig: Rig) -> str:
    """What kind of device it says it is."""
    data = bytes((await good(rig.first.send(requests.inquiry()), "INQUIRY")).data)
    length = inquiry_length(data)
    if len(data) != min(length, 255):
        raise Finding(f"{len(data)} bytes, ADDITIONAL LENGTH says {length}", "all of them")
    if data[0] != PERIPHERAL_DISK:
        raise Finding(f"peripheral byte {data[0]:02X}h", "00h: a disk")
    if data[2] < _VERSION_MINIMUM:
        raise Finding(f"VERSION {data[2]}", f"VERSION {_VERSION_MINIMUM} or higher: SPC-2")
    if data[3] & 0x0F != 2:
        raise Finding(f"RESPONSE DATA FORMAT {data[3] & 0x0F}", "2")
    name = f"{_text(data[8:16])} {_text(data[16:32])}, revision {_text(data[32:36])}"
    return f"{name}, VERSION {data[2]}"


def _text(field: bytes) -> str:
    return printable(field).strip()


async def command_queueing(rig: Rig) -> str:
    """CMDQUE and the version descriptor of iSCSI."""
    data = bytes((await good(rig.first.send(requests.inquiry()), "INQUIRY")).data)
    inquiry_length(data)
    if not data[7] & 0x02:
        raise Finding("CMDQUE=0", "CMDQUE=1: commands may be queued")
    found = [int.from_bytes(data[at : at + 2], "big") for at in range(58, min(len(data), 74), 2)]
    if _ISCSI_VERSION_DESCRIPTOR not in found:
        raise Finding("no version descriptor 0960h", "iSCSI (0960h) among the version descriptors")
    return "CMDQUE=1, version descriptor 0960h"


async def capacity(rig: Rig) -> str:
    """Both commands tell the same size, to every node."""
    nexus = rig.first
    ten = bytes((await good(nexus.send(requests.read_capacity_10()), "READ CAPACITY(10)")).data)
    if len(ten) != 8:
        raise Finding(f"READ CAPACITY(10): {len(ten)} bytes", "8 bytes")
    sixteen = await read_capacity(nexus)
    last, size = int.from_bytes(ten[:4], "big"), int.from_bytes(ten[4:], "big")
    if (last, size) != (min(sixteen.block_count - 1, 0xFFFF_FFFF), sixteen.block_size):
        raise Finding(
            f"READ CAPACITY(10): last block {last} of {size} bytes, READ CAPACITY(16):"
            f" {sixteen.block_count - 1} of {sixteen.block_size}",
            "the same in both",
        )
    for node in rig.nodes[1:]:
        theirs = await read_capacity(node.nexus)
        if theirs != sixteen:
            raise Finding(f"{node} sees {theirs.block_count} blocks", f"{sixteen.block_count}")
    if sixteen.block_size not in _BLOCK_SIZES:
        raise Finding(f"blocks of {sixteen.block_size} bytes", "512 or 4096", warns=True)
    return f"{sixteen.block_count} blocks of {sixteen.block_size} bytes"


async def caching_page(rig: Rig) -> str:
    """Windows asks for page 08h with 192 bytes and believes WCE."""
    return f"WCE={await has_write_cache(rig.first):d}"


async def has_write_cache(nexus: Nexus) -> bool:
    """WCE of the caching page. Raises Finding."""
    return bool((await _mode_page(nexus, requests.CACHING_PAGE))[2] & _WCE)


async def _mode_page(nexus: Nexus, page: int) -> bytes:
    """A mode page with its header, asked for alone. Raises Finding."""
    request = requests.mode_sense_6(page)
    data = await mode_data(nexus, request)
    body = data[4 + data[3] :]
    if len(body) < 3 or body[0] & 0x3F != page or len(body) < 2 + body[1]:
        raise Finding(f"{request.name}: no such page in {len(data)} bytes", f"page {page:02X}h")
    return body


async def all_mode_pages(rig: Rig) -> str:
    """Page 3Fh, whose refusal Windows takes for a reason to ask for 08h."""
    data = await mode_data(rig.first, requests.mode_sense_6(_ALL_PAGES))
    return f"{len(data)} of {data[0] + 1} bytes"


async def exceptions_page(rig: Rig) -> str:
    """Page 1Ch, by which failures are predicted."""
    body = await _mode_page(rig.first, _EXCEPTIONS)
    return f"DEXCPT={body[2] >> 3 & 1}"


async def writable(rig: Rig) -> str:
    """WP of the device specific parameter."""
    if await write_protected(rig.first):
        raise Finding("WP=1: the disk is write protected", "a disk that can be written")
    return "WP=0"


async def force_unit_access(rig: Rig) -> str:
    """DPOFUA of the device specific parameter."""
    data = await mode_data(rig.first, requests.mode_sense_6(requests.CACHING_PAGE))
    if not data[2] & _DPOFUA:
        raise Finding("DPOFUA=0: Windows turns write caching off", "DPOFUA=1")
    return "DPOFUA=1"


async def block_limits(rig: Rig) -> str:
    """Page B0h, with room for the UNMAP limits."""
    page = await _expected_page(rig.first, BLOCK_LIMITS)
    if len(page) < BLOCK_LIMITS_LENGTHS[0]:
        raise Finding(
            f"PAGE LENGTH {len(page):02X}h", "24h at least: else UNMAP limits are ignored"
        )
    return f"PAGE LENGTH {len(page):02X}h"


async def characteristics(rig: Rig) -> str:
    """Page B1h."""
    page = await _expected_page(rig.first, CHARACTERISTICS)
    if len(page) != _CHARACTERISTICS_LENGTH:
        raise Finding(f"PAGE LENGTH {len(page):02X}h", "3Ch: Windows ignores any other")
    rate = int.from_bytes(page[:2], "big")
    return f"PAGE LENGTH 3Ch, medium rotation rate {rate}"


async def provisioning_page(rig: Rig) -> str:
    """Page B2h."""
    page = await _expected_page(rig.first, PROVISIONING)
    if len(page) < 4:
        raise Finding(f"PAGE LENGTH {len(page):02X}h", "04h at least")
    return f"PAGE LENGTH {len(page):02X}h, provisioning type {page[2] & 7}"


async def _expected_page(nexus: Nexus, page: int) -> bytes:
    found = await page_if_listed(nexus, page)
    if found is None:
        raise Finding(f"page {page:02X}h is not listed", f"page {page:02X}h")
    return found


async def unlisted_page(rig: Rig) -> str:
    """A page that is not there is refused, not invented."""
    listed = await read_page(rig.first, SUPPORTED_PAGES)
    page = next((page for page in (0xDF, 0xDE, 0xDD) if page not in listed), None)
    if page is None:
        raise Skipped("every page is listed")
    request = requests.inquiry(page)
    result = await rig.first.send(request)
    if not is_illegal_request(result):
        raise Finding(f"{request.name}: {result}", "CHECK CONDITION, ILLEGAL REQUEST")
    return f"{request.name}: {result}"


_VPD_TEST = "Validate SCSI Device Vital Product Data (VPD)"

CHECKS = (
    Check(
        "report-luns-16",
        Area.DEVICE,
        "REPORT LUNS is truncated to 16 bytes",
        "the first command that Windows sends after a login gets the answer that it needs",
        "SPC-5, REPORT LUNS command",
        Importance.REQUIRED,
        report_luns_truncated,
        (first_node,),
        windows="List All Disks",
    ),
    Check(
        "residual",
        Area.DEVICE,
        "Short answers report their residual",
        "the initiator knows how much of its buffer was filled",
        "RFC 7143 section 11.4.5",
        Importance.REQUIRED,
        underflow_residual,
        (first_node,),
    ),
    Check(
        "lun-0",
        Area.DEVICE,
        "LUN 0 answers INQUIRY",
        "the bus can be scanned whatever is mapped",
        "SPC-5, INQUIRY command",
        Importance.REQUIRED,
        lun_0,
        (first_node,),
    ),
    Check(
        "luns",
        Area.DEVICE,
        "The list of LUNs can be used",
        "each disk is listed once, under a number that Windows uses",
        "SAM-6 clause 4.7",
        Importance.REQUIRED,
        lun_list,
        (disk,),
        windows="List All Disks",
    ),
    Check(
        "inquiry",
        Area.DEVICE,
        "INQUIRY describes a disk of SPC-2 or later",
        "Windows asks for vital product data and persistent reservations at all",
        "SPC-5, Standard INQUIRY data",
        Importance.REQUIRED,
        standard_inquiry,
        (disk,),
        windows="List Potential Cluster Disks",
    ),
    Check(
        "queueing",
        Area.DEVICE,
        "Commands can be queued; iSCSI is named",
        "CMDQUE and the version descriptor tell initiators what they have before them",
        "SPC-5, Standard INQUIRY data",
        Importance.RECOMMENDED,
        command_queueing,
        (disk,),
    ),
    Check(
        "capacity",
        Area.DEVICE,
        "All nodes are told the same size",
        "both READ CAPACITY commands agree, for every node",
        "SBC-4, READ CAPACITY commands",
        Importance.REQUIRED,
        capacity,
        (calm,),
        windows="List Potential Cluster Disks",
    ),
    Check(
        "mode-caching",
        Area.DEVICE,
        "MODE SENSE(6) of the caching page",
        "Windows knows whether there is a write cache to flush",
        "SBC-4, Caching mode page",
        Importance.REQUIRED,
        caching_page,
        (disk,),
    ),
    Check(
        "mode-all",
        Area.DEVICE,
        "MODE SENSE(6) of all pages",
        "a 192 byte buffer gets as much as fits",
        "SPC-5, MODE SENSE(6) command",
        Importance.RECOMMENDED,
        all_mode_pages,
        (disk,),
    ),
    Check(
        "mode-exceptions",
        Area.DEVICE,
        "MODE SENSE(6) of the exceptions page",
        "Windows can ask whether the disk predicts its failure",
        "SPC-5, Informational Exceptions Control mode page",
        Importance.RECOMMENDED,
        exceptions_page,
        (disk,),
    ),
    Check(
        "writable",
        Area.DEVICE,
        "The disk is not write protected",
        "a cluster can own the disk",
        "SBC-4, Mode parameter header",
        Importance.REQUIRED,
        writable,
        (disk,),
        windows="List Potential Cluster Disks",
    ),
    Check(
        "dpofua",
        Area.DEVICE,
        "Writes may force unit access",
        "Windows keeps the write cache on and writes through where it must",
        "SBC-4, Mode parameter header",
        Importance.RECOMMENDED,
        force_unit_access,
        (disk,),
    ),
    Check(
        "vpd-block-limits",
        Area.DEVICE,
        "Page B0h: block limits",
        "Windows splits its transfers and UNMAP requests as the target can take them",
        "SBC-4, Block Limits VPD page",
        Importance.RECOMMENDED,
        block_limits,
        (disk,),
        windows=_VPD_TEST,
    ),
    Check(
        "vpd-characteristics",
        Area.DEVICE,
        "Page B1h: block device characteristics",
        "Windows can tell a turning disk from one that does not",
        "SBC-4, Block Device Characteristics VPD page",
        Importance.RECOMMENDED,
        characteristics,
        (disk,),
        windows=_VPD_TEST,
    ),
    Check(
        "vpd-provisioning",
        Area.DEVICE,
        "Page B2h: logical block provisioning",
        "Windows can tell a thin disk from a fully provisioned one",
        "SBC-4, Logical Block Provisioning VPD page",
        Importance.INFORMATIONAL,
        provisioning_page,
        (disk,),
        windows=_VPD_TEST,
    ),
    Check(
        "vpd-unlisted",
        Area.DEVICE,
        "A page that is not listed is refused",
        "no page can be mistaken for another",
        "SPC-5 clause 6.6",
        Importance.RECOMMENDED,
        unlisted_page,
        (disk,),
        windows=_VPD_TEST,
    ),
)
