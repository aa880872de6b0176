"""SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-5).

The self-test reads the first block, which is all that a disk made of a file can test. The only
diagnostic page is the list of pages.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..storage.base import StorageError
from .sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_cdb_field,
    invalid_parameter_field,
    parameter_list_length_error,
)
from .task import Outcome, Result, Task, fresh_buffer

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# CDB bits, byte 1
SELFTEST_BIT = 2
PCV = 0x01

SUPPORTED_DIAGNOSTIC_PAGES = 0x00
# SPC-5, Supported Diagnostic Pages: page code, page length, list
PAGES: Mapping[int, bytes] = {
    SUPPORTED_DIAGNOSTIC_PAGES: bytes((SUPPORTED_DIAGNOSTIC_PAGES, 0, 0, 1, 0x00)),
}
_PAGE_HEADER_LENGTH = 4

# SELF-TEST CODE field (SPC-5, SEND DIAGNOSTIC): the foreground tests. Background ones would need
# a log of results.
FOREGROUND_SHORT = 0b101
FOREGROUND_EXTENDED = 0b110


async def _self_test(lu: "LogicalUnit") -> Result:
    try:
        await lu.store.read(0, fresh_buffer(lu.block_size))
    except StorageError as error:
        raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST) from error
    return Result()


def _check_page(parameters: bytes) -> None:
    """A diagnostic page sent to the unit: only the one that asks for the list of pages."""
    if len(parameters) < _PAGE_HEADER_LENGTH:
        raise parameter_list_length_error()
    if parameters[0] not in PAGES:
        raise invalid_parameter_field(0, 7)
    if int.from_bytes(parameters[2:_PAGE_HEADER_LENGTH], "big"):
        raise invalid_parameter_field(2, 7)
    if len(parameters) != _PAGE_HEADER_LENGTH:
        raise parameter_list_length_error()


def send_diagnostic(lu: "LogicalUnit", task: Task) -> Outcome:
    """SEND DIAGNOSTIC: self-tests in the foreground, and page 00h. Raises ScsiError."""
    cdb = task.cdb
    length = cdb[3] << 8 | cdb[4]
    self_test_code = cdb[1] >> 5
    if cdb[1] >> SELFTEST_BIT & 1:
        if self_test_code:
            raise invalid_cdb_field(1, 7)
    elif self_test_code not in (0, FOREGROUND_SHORT, FOREGROUND_EXTENDED):
        raise invalid_cdb_field(1, 7)
    if self_test_code or cdb[1] >> SELFTEST_BIT & 1:
        if length:
            raise invalid_cdb_field(3, 7)
        return _self_test(lu)
    if length:
        parameters = b"".join(task.data_out)[:length]
        if len(parameters) < length:
            raise parameter_list_length_error()
        _check_page(parameters)
    return Result(data_out_length=length)


def receive_diagnostic_results(lu: "LogicalUnit", task: Task) -> Result:
    """RECEIVE DIAGNOSTIC RESULTS; without PCV too, the only page is the answer (SPC-5)."""
    cdb = task.cdb
    page_code = cdb[2]
    if page_code not in PAGES or (page_code and not cdb[1] & PCV):
        raise invalid_cdb_field(2, 7)
    return Result(data=PAGES[page_code][: cdb[3] << 8 | cdb[4]])
