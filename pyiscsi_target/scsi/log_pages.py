"""LOG SENSE and the log pages (SPC-5 clause 7.3, SBC-4).

One row of `PAGES` per page builds its parameters from what the logical unit counted and what its
store can tell; a figure that nobody measures is left out, or reported as not available where its
parameter is mandatory. Nothing is saved and nothing can be set.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from construct import BitsInteger, BitStruct, Byte, Flag, GreedyBytes, Int16ub, Prefixed, Struct

from ..storage.base import Provisioning
from .limits import THRESHOLD_SET_BYTES
from .sense import invalid_cdb_field
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

SUPPORTED_PAGES = 0x00
ALL_SUBPAGES = 0xFF

# PC field (SPC-5, LOG SENSE)
THRESHOLD = 0
CUMULATIVE = 1
DEFAULT_THRESHOLD = 2
DEFAULT_CUMULATIVE = 3
_THRESHOLDS = (THRESHOLD, DEFAULT_THRESHOLD)

# FORMAT AND LINKING (SPC-5 clause 7.3)
BOUNDED_COUNTER = 0b00
BINARY_LIST = 0b11

# Parameter codes of the error counter pages (SPC-5)
TOTAL_BYTES_PROCESSED = 0x0005
TOTAL_UNCORRECTED_ERRORS = 0x0006

# Parameter codes of the logical block provisioning page (SBC-4)
AVAILABLE_LBA_MAPPING_RESOURCE_COUNT = 0x0001
USED_LBA_MAPPING_RESOURCE_COUNT = 0x0002
DEDICATED_TO_LOGICAL_UNIT = 0x01
SHARED_WITH_OTHERS = 0x02

NOT_AVAILABLE = 0xFF  # a temperature that nobody measures (SPC-5, Temperature log page)
_COUNT_MAXIMUM = 0xFFFF_FFFF
_EXTENTS_AT_ONCE = 1024

# SPC-5 clause 7.3, log page structure
LOG_PAGE = Struct(
    "head" / BitStruct("ds" / Flag, "spf" / Flag, "page_code" / BitsInteger(6)),
    "subpage_code" / Byte,
    "parameters" / Prefixed(Int16ub, GreedyBytes),
)

# SPC-5 clause 7.3, log parameter structure. DU, TSD, ETC and TMC are zero.
LOG_PARAMETER = Struct(
    "code" / Int16ub,
    "format_and_linking" / Byte,
    "value" / Prefixed(Byte, GreedyBytes),
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One log parameter with its cumulative value."""

    code: int
    format_and_linking: int
    value: bytes

    def encode(self, page_control: int) -> bytes:
        """The parameter with the value that PC asks for.

        A counter's threshold is the greatest value, which is never met; it counts from zero.
        """
        value = self.value
        if self.format_and_linking == BOUNDED_COUNTER and page_control != CUMULATIVE:
            value = (b"\xff" if page_control in _THRESHOLDS else b"\0") * len(value)
        encoded: bytes = LOG_PARAMETER.build(
            {"code": self.code, "format_and_linking": self.format_and_linking, "value": value}
        )
        return encoded


Parameters = list[Parameter]
Source = Callable[["LogicalUnit"], Parameters | Coroutine[Any, Any, Parameters]]


def _counter(code: int, count: int) -> Parameter:
    return Parameter(code, BOUNDED_COUNTER, count.to_bytes(8, "big"))


def _error_counters(total_bytes: int, uncorrected_errors: int) -> Parameters:
    return [
        _counter(TOTAL_BYTES_PROCESSED, total_bytes),
        _counter(TOTAL_UNCORRECTED_ERRORS, uncorrected_errors),
    ]


def _write_errors(lu: "LogicalUnit") -> Parameters:
    """Write Error Counters (SPC-5)."""
    return _error_counters(lu.statistics.write_bytes, lu.statistics.write_errors)


def _read_errors(lu: "LogicalUnit") -> Parameters:
    """Read Error Counters (SPC-5)."""
    return _error_counters(lu.statistics.read_bytes, lu.statistics.read_errors)


def _verify_errors(lu: "LogicalUnit") -> Parameters:
    """Verify Error Counters (SPC-5)."""
    return _error_counters(lu.statistics.verify_bytes, lu.statistics.verify_errors)


async def _mapped_bytes(lu: "LogicalUnit") -> int:
    """How much of the disk the store holds space for."""
    offset = mapped = 0
    while offset < lu.store.size_bytes:
        extents = await lu.store.extents(offset, lu.store.size_bytes - offset, _EXTENTS_AT_ONCE)
        for extent in extents:
            if extent.state is not Provisioning.DEALLOCATED:
                mapped += extent.length_bytes
        offset = extents[-1].offset_bytes + extents[-1].length_bytes
    return mapped


async def _logical_block_provisioning(lu: "LogicalUnit") -> Parameters:
    """Logical Block Provisioning (SBC-4): resources, counted in threshold sets.

    What is used is rounded up. What is available, where that is known, is the file system's.
    """
    used_sets = -(-await _mapped_bytes(lu) // THRESHOLD_SET_BYTES)
    used = _resources(USED_LBA_MAPPING_RESOURCE_COUNT, used_sets, DEDICATED_TO_LOGICAL_UNIT)
    available_bytes = await lu.store.available_bytes()
    if available_bytes is None:
        return [used]
    sets = available_bytes // THRESHOLD_SET_BYTES
    return [_resources(AVAILABLE_LBA_MAPPING_RESOURCE_COUNT, sets, SHARED_WITH_OTHERS), used]


def _resources(code: int, sets: int, scope: int) -> Parameter:
    value = min(sets, _COUNT_MAXIMUM).to_bytes(4, "big") + bytes((scope, 0, 0, 0))
    return Parameter(code, BINARY_LIST, value)


def _temperature(lu: "LogicalUnit") -> Parameters:
    """Temperature (SPC-5): temperature and reference temperature, neither known."""
    return [Parameter(code, BINARY_LIST, bytes((0, NOT_AVAILABLE))) for code in (0, 1)]


def _informational_exceptions(lu: "LogicalUnit") -> Parameters:
    """Informational Exceptions (SPC-5): no exception (ASC 00h), no temperature."""
    return [Parameter(0, BINARY_LIST, bytes((0, 0, NOT_AVAILABLE, 0)))]


def _always(lu: "LogicalUnit") -> bool:
    return True


def _when_thin(lu: "LogicalUnit") -> bool:
    return lu.thin


@dataclass(frozen=True, slots=True)
class LogPage:
    """One log page; `has_thresholds` where its parameters are counters."""

    code: int
    name: str
    parameters: Source
    has_thresholds: bool
    supported: Callable[["LogicalUnit"], bool] = _always


_ROWS = (
    LogPage(0x02, "Write Error Counters", _write_errors, has_thresholds=True),
    LogPage(0x03, "Read Error Counters", _read_errors, has_thresholds=True),
    LogPage(0x05, "Verify Error Counters", _verify_errors, has_thresholds=True),
    LogPage(
        0x0C,
        "Logical Block Provisioning",
        _logical_block_provisioning,
        has_thresholds=False,
        supported=_when_thin,
    ),
    LogPage(0x0D, "Temperature", _temperature, has_thresholds=False),
    LogPage(0x2F, "Informational Exceptions", _informational_exceptions, has_thresholds=False),
)
PAGES: Mapping[int, LogPage] = {page.code: page for page in _ROWS}


def _encode_page(page_code: int, subpage_code: int, parameters: bytes) -> bytes:
    """The page; DS is set because nothing is ever saved."""
    page: bytes = LOG_PAGE.build(
        {
            "head": {"ds": True, "spf": subpage_code != 0, "page_code": page_code},
            "subpage_code": subpage_code,
            "parameters": parameters,
        }
    )
    return page


def _list_of_pages(lu: "LogicalUnit", page_code: int, subpage_code: int) -> bytes:
    """Supported pages (00h/00h), pages and subpages (00h/FFh), or one page's subpages (xxh/FFh).

    SPC-5, Supported Log Pages, Supported Log Pages and Subpages, Supported Subpages.
    """
    codes = [SUPPORTED_PAGES, *(page.code for page in _ROWS if page.supported(lu))]
    if page_code != SUPPORTED_PAGES:
        codes = [page_code]
    if subpage_code != ALL_SUBPAGES:
        return _encode_page(page_code, subpage_code, bytes(codes))
    pairs = b"".join(bytes((code, 0, code, ALL_SUBPAGES)) for code in codes)
    return _encode_page(page_code, subpage_code, pairs)


def _page_result(page: LogPage, parameters: Parameters, cdb: bytes) -> Result:
    """The page from the parameter that PARAMETER POINTER names, truncated."""
    pointer = cdb[5] << 8 | cdb[6]
    if pointer > max(parameter.code for parameter in parameters):
        raise invalid_cdb_field(5, 7)
    page_control = cdb[2] >> 6
    encoded = b"".join(
        parameter.encode(page_control) for parameter in parameters if parameter.code >= pointer
    )
    return Result(data=_encode_page(page.code, 0, encoded)[: cdb[7] << 8 | cdb[8]])


async def _later(page: LogPage, parameters: Coroutine[Any, Any, Parameters], cdb: bytes) -> Result:
    return _page_result(page, await parameters, cdb)


def log_sense(lu: "LogicalUnit", task: Task) -> Outcome:
    """LOG SENSE (SPC-5). Raises ScsiError."""
    cdb = task.cdb
    page_code, subpage_code = cdb[2] & 0x3F, cdb[3]
    page = PAGES.get(page_code)
    if page is not None and not page.supported(lu):
        page = None
    if page is None and page_code != SUPPORTED_PAGES:
        raise invalid_cdb_field(2, 5)
    if subpage_code not in (0, ALL_SUBPAGES):
        raise invalid_cdb_field(3, 7)
    if page is None or subpage_code == ALL_SUBPAGES:
        return Result(data=_list_of_pages(lu, page_code, subpage_code)[: cdb[7] << 8 | cdb[8]])
    if cdb[2] >> 6 in _THRESHOLDS and not page.has_thresholds:
        raise invalid_cdb_field(2, 7)
    parameters = page.parameters(lu)
    if isinstance(parameters, list):
        return _page_result(page, parameters, cdb)
    return _later(page, parameters, cdb)
