import pytest

from pyiscsi_target.scsi.report_luns import encode_lun, report_luns
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Task
from tests.support.memory_disk import data_of, field_of, make_disk, make_nexus, run, sense_of

WELL_KNOWN = "c101000000000000"


def luns_of(data: bytes) -> list[str]:
    assert int.from_bytes(data[:4], "big") == len(data) - 8
    return [data[offset : offset + 8].hex() for offset in range(8, len(data), 8)]


@pytest.mark.parametrize(
    ("select_report", "expected"),
    [
        (0x00, ["0000000000000000", "00ff000000000000", "4100000000000000"]),
        (0x01, [WELL_KNOWN]),
        (0x02, ["0000000000000000", "00ff000000000000", "4100000000000000", WELL_KNOWN]),
        (0x10, []),
        (0x11, ["0000000000000000", "00ff000000000000", "4100000000000000"]),
        (0x12, []),
    ],
)
def test_select_report(select_report: int, expected: list[str]) -> None:
    nexus, lu = make_nexus(), make_disk()
    nexus.luns |= {256: lu, 0: lu, 255: lu}
    data = data_of(run(lu, nexus, bytes((0xA0, 0, select_report, 0, 0, 0, 0, 0, 1, 0))))
    assert luns_of(data) == expected


@pytest.mark.parametrize("select_report", [0x03, 0x0F, 0x13, 0xFF])
def test_reserved_select_report_values_are_refused(select_report: int) -> None:
    cdb = bytes((0xA0, 0, select_report, 0, 0, 0, 0, 0, 1, 0))
    result = run(make_disk(), make_nexus(), cdb)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (2, 7, True)


@pytest.mark.parametrize("allocation_length", [0, 7, 8, 16, 19])
def test_truncation_leaves_the_list_length_alone(allocation_length: int) -> None:
    nexus, lu = make_nexus(), make_disk()
    nexus.luns |= dict.fromkeys(range(5), lu)
    data = data_of(run(lu, nexus, bytes((0xA0, *bytes(8), allocation_length))))
    whole = data_of(run(lu, nexus, bytes((0xA0, *bytes(7), 1, 0))))
    assert data == whole[:allocation_length]
    assert whole[:4] == (40).to_bytes(4, "big")


def test_it_works_where_no_logical_unit_is() -> None:
    task = Task(make_nexus(), 0, bytes((0xA0, *bytes(8), 16)).ljust(16, b"\0"))
    assert data_of(report_luns(None, task)) == bytes(8)


def test_it_clears_the_attention_that_asks_for_it_and_no_other() -> None:
    nexus, other, units = make_nexus(), make_nexus("iqn.2026-11.lab.example:node2"), []
    for number in (0, 7):
        lu = nexus.luns[number] = other.luns[number] = make_disk()
        units.append(lu)
        for each in (nexus, other):
            lu.attentions.attach(each)
            lu.attentions.establish(each, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
        lu.attentions.establish(nexus, Asc.MODE_PARAMETERS_CHANGED)
    data_of(run(units[0], nexus, bytes((0xA0, *bytes(8), 16))))
    for lu in units:
        assert lu.attentions.take(nexus) is Asc.MODE_PARAMETERS_CHANGED
        assert lu.attentions.take(nexus) is None
        assert lu.attentions.take(other) is Asc.REPORTED_LUNS_DATA_HAS_CHANGED


@pytest.mark.parametrize(
    ("number", "lun"), [(0, 0), (255, 0x00FF << 48), (256, 0x4100 << 48), (16383, 0x7FFF << 48)]
)
def test_addressing_methods(number: int, lun: int) -> None:
    assert encode_lun(number) == lun
