from itertools import pairwise

import pytest

from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Result
from pyiscsi_target.storage.base import Extent, Provisioning
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
    store_of,
)

MIB = 1 << 20
THRESHOLD, CUMULATIVE, DEFAULT_THRESHOLD, DEFAULT_CUMULATIVE = range(4)


def log_sense(
    lu: LogicalUnit,
    page: int,
    subpage: int = 0,
    *,
    control: int = CUMULATIVE,
    pointer: int = 0,
    length: int = 0xFFFF,
) -> Result:
    cdb = bytes((0x4D, 0, control << 6 | page, subpage, 0)) + pointer.to_bytes(2)
    return run(lu, make_nexus(), cdb + length.to_bytes(2) + b"\0")


def content_of(data: bytes, page: int, subpage: int = 0) -> bytes:
    assert data[0] == 0x80 | (0x40 if subpage else 0) | page
    assert data[1] == subpage
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def parameters_of(content: bytes) -> dict[int, tuple[int, bytes]]:
    """Code to control byte and value."""
    found = {}
    while content:
        end = 4 + content[3]
        found[int.from_bytes(content[:2])] = (content[2], content[4:end])
        content = content[end:]
    assert all(one < other for one, other in pairwise(found))
    return found


@pytest.mark.parametrize("thin", [False, True])
def test_lists_of_pages_and_subpages(thin: bool) -> None:
    lu = make_disk(DiskSettings(thin=thin))
    pages = content_of(data_of(log_sense(lu, 0)), 0)
    assert pages.hex() == ("000203050c0d2f" if thin else "000203050d2f")
    pairs = content_of(data_of(log_sense(lu, 0, 0xFF)), 0, 0xFF)
    assert pairs == b"".join(bytes((code, 0, code, 0xFF)) for code in pages)
    for code, subpage in zip(pairs[::2], pairs[1::2], strict=True):
        assert content_of(data_of(log_sense(lu, code, subpage)), code, subpage)


def test_the_subpages_of_one_page() -> None:
    data = data_of(log_sense(make_disk(), 0x0D, 0xFF))
    assert content_of(data, 0x0D, 0xFF).hex() == "0d000dff"


@pytest.mark.parametrize(("page", "operation"), [(0x02, "write"), (0x03, "read"), (0x05, "verify")])
def test_error_counters(page: int, operation: str) -> None:
    lu = make_disk()
    setattr(lu.statistics, f"{operation}_bytes", 3 << 40)
    setattr(lu.statistics, f"{operation}_errors", 7)
    parameters = parameters_of(content_of(data_of(log_sense(lu, page)), page))
    assert parameters == {5: (0, (3 << 40).to_bytes(8)), 6: (0, (7).to_bytes(8))}


def test_what_was_read_and_written_is_counted() -> None:
    lu, nexus = make_disk(), make_nexus()
    run(lu, nexus, "2A 00 00 00 00 00 00 00 02 00", [bytes(1024)])
    run(lu, nexus, "28 00 00 00 00 00 00 00 03 00")
    written = parameters_of(content_of(data_of(log_sense(lu, 0x02)), 0x02))
    read = parameters_of(content_of(data_of(log_sense(lu, 0x03)), 0x03))
    assert (int.from_bytes(written[5][1]), int.from_bytes(read[5][1])) == (1024, 1536)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        (THRESHOLD, b"\xff" * 8),
        (DEFAULT_THRESHOLD, b"\xff" * 8),
        (DEFAULT_CUMULATIVE, bytes(8)),
    ],
)
def test_thresholds_and_defaults_of_counters(control: int, value: bytes) -> None:
    lu = make_disk()
    lu.statistics.read_bytes = lu.statistics.read_errors = 5
    content = content_of(data_of(log_sense(lu, 0x03, control=control)), 0x03)
    assert parameters_of(content) == {5: (0, value), 6: (0, value)}


@pytest.mark.parametrize("page", [0x0C, 0x0D, 0x2F])
def test_pages_of_lists_have_no_thresholds(page: int) -> None:
    lu = make_disk()
    for control in (THRESHOLD, DEFAULT_THRESHOLD):
        assert field_of(log_sense(lu, page, control=control)) == (2, 7, True)
    default = data_of(log_sense(lu, page, control=DEFAULT_CUMULATIVE))
    assert default == data_of(log_sense(lu, page))


def test_temperature_and_exceptions_report_that_nothing_is_known() -> None:
    lu = make_disk()
    assert parameters_of(content_of(data_of(log_sense(lu, 0x0D)), 0x0D)) == {
        0: (3, b"\0\xff"),
        1: (3, b"\0\xff"),
    }
    exceptions = parameters_of(content_of(data_of(log_sense(lu, 0x2F)), 0x2F))
    assert exceptions == {0: (3, b"\0\0\xff\0")}


def test_used_resources_are_what_the_store_holds_rounded_up() -> None:
    lu = make_disk(size_bytes=16 * MIB)
    store_of(lu).mapped = [
        Extent(0, 3 * MIB, Provisioning.MAPPED),
        Extent(3 * MIB, 8 * MIB, Provisioning.DEALLOCATED),
        Extent(11 * MIB, 4096, Provisioning.ANCHORED),
        Extent(11 * MIB + 4096, 5 * MIB - 4096, Provisioning.DEALLOCATED),
    ]
    parameters = parameters_of(content_of(data_of(log_sense(lu, 0x0C)), 0x0C))
    assert parameters == {2: (3, (4).to_bytes(4) + b"\x01\0\0\0")}


def test_available_resources_are_what_the_medium_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lu = make_disk(size_bytes=16 * MIB)

    async def available_bytes() -> int:
        return 7 * MIB - 1

    monkeypatch.setattr(lu.store, "available_bytes", available_bytes)
    parameters = parameters_of(content_of(data_of(log_sense(lu, 0x0C)), 0x0C))
    assert parameters[1] == (3, (6).to_bytes(4) + b"\x02\0\0\0")


def test_used_resources_of_more_extents_than_are_asked_for_at_once() -> None:
    lu = make_disk(size_bytes=6000 * 4096)
    store_of(lu).mapped = [
        Extent(index * 4096, 4096, (Provisioning.MAPPED, Provisioning.DEALLOCATED)[index % 2])
        for index in range(6000)
    ]
    parameters = parameters_of(content_of(data_of(log_sense(lu, 0x0C)), 0x0C))
    assert int.from_bytes(parameters[2][1][:4]) == -(-3000 * 4096 // MIB)


def test_a_failing_store_is_an_error_not_a_figure() -> None:
    lu = make_disk()
    store_of(lu).failing = True
    assert sense_of(log_sense(lu, 0x0C))[0] is SenseKey.MEDIUM_ERROR


def test_the_parameter_pointer_skips_and_must_point_at_something() -> None:
    lu = make_disk()
    content = content_of(data_of(log_sense(lu, 0x02, pointer=6)), 0x02)
    assert list(parameters_of(content)) == [6]
    result = log_sense(lu, 0x02, pointer=7)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (5, 7, True)


@pytest.mark.parametrize(
    ("page", "subpage", "byte", "bit"),
    [(0x3F, 0, 2, 5), (0x01, 0xFF, 2, 5), (0x0D, 0x01, 3, 7), (0x00, 0x01, 3, 7)],
)
def test_pages_that_do_not_exist(page: int, subpage: int, byte: int, bit: int) -> None:
    result = log_sense(make_disk(), page, subpage)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (byte, bit, True)


def test_a_thick_disk_has_no_provisioning_page() -> None:
    assert field_of(log_sense(make_disk(DiskSettings(thin=False)), 0x0C)) == (2, 5, True)


@pytest.mark.parametrize("page", [0x00, 0x02, 0x0C])
@pytest.mark.parametrize("length", [0, 3, 4, 9])
def test_truncation_leaves_the_page_length_alone(page: int, length: int) -> None:
    lu = make_disk()
    whole = data_of(log_sense(lu, page))
    assert data_of(log_sense(lu, page, length=length)) == whole[:length]
