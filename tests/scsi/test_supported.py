import pytest

from pyiscsi_target.scsi.commands import Command
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Result
from pyiscsi_target.storage.base import Capabilities
from tests.support.memory_disk import data_of, field_of, make_disk, make_nexus, run, sense_of

RCTD = 0x80


def ask(
    lu: LogicalUnit, options: int, opcode: int = 0, action: int = 0, *, length: int = 0xFFFF
) -> Result:
    cdb = bytes((0xA3, 0x0C, options, opcode)) + action.to_bytes(2) + length.to_bytes(4)
    return run(lu, make_nexus(), cdb + bytes(2))


def descriptors(data: bytes, size: int) -> list[bytes]:
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert (len(data) - 4) % size == 0
    return [data[offset : offset + size] for offset in range(4, len(data), size)]


def test_all_commands_are_the_rows_of_the_table() -> None:
    lu = make_disk()
    found = descriptors(data_of(ask(lu, 0)), 8)
    assert len(found) == len(lu.commands)
    for descriptor, row in zip(found, lu.commands, strict=True):
        assert descriptor[0] == row.opcode
        assert int.from_bytes(descriptor[2:4]) == (row.service_action or 0)
        assert descriptor[5] == (row.service_action is not None)
        assert int.from_bytes(descriptor[6:8]) == len(row.usage)


def test_all_commands_with_their_timeouts() -> None:
    lu = make_disk()
    found = descriptors(data_of(ask(lu, RCTD)), 20)
    for descriptor, row in zip(found, lu.commands, strict=True):
        assert descriptor[5] & 0x02
        assert descriptor[8:16].hex() == "000a000000000000"
        assert int.from_bytes(descriptor[16:20]) == row.timeout_s > 0


def options_for(row: Command) -> tuple[int, int]:
    """The option that suits the command, and the one that does not."""
    return (1, 2) if row.service_action is None else (2, 1)


def test_each_command_alone_shows_its_usage_map() -> None:
    lu = make_disk()
    for row in lu.commands:
        right, wrong = options_for(row)
        expected = bytes((0, 3)) + len(row.usage).to_bytes(2) + row.usage
        action = row.service_action or 0
        for option in (right, 3):
            assert data_of(ask(lu, option, row.opcode, action)) == expected
            timed = data_of(ask(lu, option | RCTD, row.opcode, action))
            assert timed[:2] == bytes((0, 0x83))
            assert timed[4:-12] == row.usage
            assert int.from_bytes(timed[-4:]) == row.timeout_s
        refused = ask(lu, wrong, row.opcode, action)
        assert sense_of(refused) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
        assert field_of(refused) == (2, 2, True)


@pytest.mark.parametrize(
    ("options", "opcode", "action"),
    [
        (1, 0xFF, 0),
        (2, 0xFF, 0),
        (3, 0xFF, 0),
        (2, 0xA3, 0x1F),
        (3, 0xA3, 0x1F),
        (3, 0x12, 0x01),
        (1 | RCTD, 0xFF, 0),
    ],
)
def test_what_is_not_supported_says_so(options: int, opcode: int, action: int) -> None:
    assert data_of(ask(make_disk(), options, opcode, action)) == bytes((0, 1, 0, 0))


def test_a_thick_disk_does_not_support_unmap() -> None:
    assert data_of(ask(make_disk(DiskSettings(thin=True)), 1, 0x42))[1] == 3
    assert data_of(ask(make_disk(DiskSettings(thin=False)), 1, 0x42))[1] == 1


@pytest.mark.parametrize(
    ("thin", "anchors", "flags"),
    [
        (True, True, {0x41: 0x18, 0x93: 0x19, 0x42: 0x01}),
        (True, False, {0x41: 0x08, 0x93: 0x09, 0x42: 0x00}),
        (False, True, {0x41: 0x00, 0x93: 0x01}),
    ],
    ids=["anchors", "thin", "thick"],
)
def test_bits_that_a_disk_does_not_evaluate(
    thin: bool, anchors: bool, flags: dict[int, int]
) -> None:
    capabilities = Capabilities(deallocate_granularity_bytes=4096, anchors=anchors)
    lu = make_disk(DiskSettings(thin=thin), capabilities=capabilities)
    for opcode, expected in flags.items():
        assert data_of(ask(lu, 1, opcode))[5] == expected


@pytest.mark.parametrize("options", [4, 5, 6, 7])
def test_reserved_reporting_options(options: int) -> None:
    result = ask(make_disk(), options)
    assert field_of(result) == (2, 2, True)


@pytest.mark.parametrize("length", [0, 3, 4, 10])
def test_truncation_leaves_the_length_field_alone(length: int) -> None:
    lu = make_disk()
    assert data_of(ask(lu, 0, length=length)) == data_of(ask(lu, 0))[:length]


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        ("A3 0D 00 00 00 00 00 00 00 FF 00 00", "d8070000"),
        ("A3 0D 80 00 00 00 00 00 00 FF 00 00", "d807000c" + "00" * 12),
        ("A3 0D 80 00 00 00 00 00 00 04 00 00", "d807000c"),
    ],
)
def test_task_management_functions(cdb: str, expected: str) -> None:
    assert data_of(run(make_disk(), make_nexus(), cdb)).hex() == expected
