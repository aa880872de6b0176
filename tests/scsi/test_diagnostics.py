import pytest

from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Result, Status
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
    store_of,
)

SELF_TESTS = ["1D 04 00 00 00 00", "1D A0 00 00 00 00", "1D C0 00 00 00 00"]


def send(parameters: str, length: int | None = None) -> Result:
    raw = bytes.fromhex(parameters)
    length = len(raw) if length is None else length
    cdb = bytes((0x1D, 0x10, 0)) + length.to_bytes(2) + b"\0"
    return run(make_disk(), make_nexus(), cdb, [raw])


@pytest.mark.parametrize("cdb", SELF_TESTS)
def test_self_tests_read_the_medium(cdb: str) -> None:
    lu, nexus = make_disk(), make_nexus()
    assert run(lu, nexus, cdb).status == Status.GOOD
    store_of(lu).failing = True
    assert sense_of(run(lu, nexus, cdb)) == (
        SenseKey.HARDWARE_ERROR,
        Asc.LOGICAL_UNIT_FAILED_SELF_TEST,
    )


@pytest.mark.parametrize("self_test_code", [0b001, 0b010, 0b011, 0b100, 0b111])
def test_background_tests_are_refused(self_test_code: int) -> None:
    result = run(make_disk(), make_nexus(), bytes((0x1D, self_test_code << 5, 0, 0, 0, 0)))
    assert field_of(result) == (1, 7, True)


def test_a_default_self_test_takes_no_code_and_no_list() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert field_of(run(lu, nexus, "1D A4 00 00 00 00")) == (1, 7, True)
    assert field_of(run(lu, nexus, "1D 04 00 00 04 00", [bytes(4)])) == (3, 7, True)


def test_the_list_of_pages_can_be_asked_for() -> None:
    assert send("").status == Status.GOOD
    assert send("00 00 0000").status == Status.GOOD


@pytest.mark.parametrize(
    ("parameters", "byte"), [("01 00 0000", 0), ("00 00 0001 00", 2), ("FF 00 0000", 0)]
)
def test_other_pages_are_refused(parameters: str, byte: int) -> None:
    assert field_of(send(parameters)) == (byte, 7, False)


@pytest.mark.parametrize(("parameters", "length"), [("00 00", 2), ("00 00", 4), ("00" * 5, 5)])
def test_lists_of_a_wrong_length(parameters: str, length: int) -> None:
    assert sense_of(send(parameters, length)) == (
        SenseKey.ILLEGAL_REQUEST,
        Asc.PARAMETER_LIST_LENGTH_ERROR,
    )


@pytest.mark.parametrize("flags", [0, 1])
def test_the_only_page_lists_itself(flags: int) -> None:
    lu, nexus = make_disk(), make_nexus()
    assert data_of(run(lu, nexus, bytes((0x1C, flags, 0, 0, 255, 0)))).hex() == "0000000100"
    assert data_of(run(lu, nexus, bytes((0x1C, flags, 0, 0, 2, 0)))).hex() == "0000"
    assert field_of(run(lu, nexus, bytes((0x1C, flags, 1, 0, 255, 0)))) == (2, 7, True)
