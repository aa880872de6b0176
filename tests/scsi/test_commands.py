"""The command table: that its rows are well formed, and that dispatch obeys them."""

import pytest

from pyiscsi_target.scsi.commands import COMMANDS, SERVICE_ACTIONS, Command, commands_for
from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.reservations import Access
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.storage.base import Capabilities
from tests.support.memory_disk import field_of, make_disk, make_nexus, run, sense_of

ANCHORING = Capabilities(deallocate_granularity_bytes=4096, anchors=True)
CDB_LENGTH_BY_GROUP = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
INVALID_OPCODE = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)
INVALID_FIELD = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)


def row_id(row: Command) -> str:
    return row.name


def test_rows_are_unique_and_sorted() -> None:
    keys = [(row.opcode, row.service_action or 0) for row in COMMANDS]
    assert keys == sorted(set(keys))
    assert len({row.name for row in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("row", COMMANDS, ids=row_id)
def test_usage_map(row: Command) -> None:
    assert row.usage[0] == row.opcode
    assert len(row.usage) == row.length == CDB_LENGTH_BY_GROUP[row.opcode >> 5]
    assert row.usage[-1] == 0  # CONTROL: NACA is not supported
    assert (row.service_action is not None) is (row.opcode in SERVICE_ACTIONS)
    if row.service_action is not None:
        assert row.usage[1] & 0x1F == row.service_action


@pytest.mark.parametrize("row", COMMANDS, ids=row_id)
def test_what_writes_conflicts_with_reservations(row: Command) -> None:
    if row.writes:
        assert row.access is Access.WRITES
        assert not row.allowed_while_ejected


@pytest.mark.parametrize("row", COMMANDS, ids=row_id)
def test_every_reserved_bit_is_refused_with_its_place(row: Command) -> None:
    lu = make_disk(capabilities=ANCHORING)
    base = bytearray(row.length)
    base[0] = row.opcode
    if row.service_action is not None:
        base[1] = row.service_action
    for byte in range(1, row.length):
        for bit in range(8):
            in_service_action = byte == 1 and row.service_action is not None and bit < 5
            if row.usage[byte] >> bit & 1 or in_service_action:
                continue
            cdb = base.copy()
            cdb[byte] |= 1 << bit
            result = run(lu, make_nexus(), bytes(cdb))
            assert sense_of(result) == INVALID_FIELD
            assert field_of(result) == (byte, bit, True)


def test_the_first_of_several_reserved_bits_is_pointed_at() -> None:
    result = run(make_disk(), make_nexus(), "28 60 00000000 c0 0001 04")
    assert field_of(result) == (1, 6, True)


def test_operation_codes_without_a_row_are_invalid() -> None:
    lu = make_disk()
    known = {row.opcode for row in COMMANDS}
    for opcode in set(range(256)) - known:
        assert sense_of(run(lu, make_nexus(), bytes([opcode]))) == INVALID_OPCODE


@pytest.mark.parametrize("opcode", sorted(SERVICE_ACTIONS))
def test_service_actions_without_a_row_are_invalid_fields(opcode: int) -> None:
    lu = make_disk()
    known = {row.service_action for row in COMMANDS if row.opcode == opcode}
    for service_action in set(range(32)) - known:
        result = run(lu, make_nexus(), bytes([opcode, service_action]))
        assert sense_of(result) == INVALID_FIELD
        assert field_of(result) == (1, 4, True)


def test_rows_of_provisioning_management_are_for_thin_disks() -> None:
    thin = {row.name for row in make_disk().commands}
    thick = {row.name for row in make_disk(DiskSettings(thin=False)).commands}
    assert thin - thick == {"UNMAP"}
    assert thick <= thin


@pytest.mark.parametrize("row", COMMANDS, ids=row_id)
def test_bits_that_depend_on_the_disk_are_evaluated_by_some(row: Command) -> None:
    assert (row.thin_bits | row.anchor_bits) & ~row.usage[1] == 0
    assert not row.thin_bits & row.anchor_bits


def test_rows_of_a_disk_refuse_what_it_does_not_evaluate() -> None:
    for thin, anchors in ((True, True), (True, False), (False, False)):
        for row in commands_for(thin=thin, anchors=anchors):
            bits = (0 if thin else row.thin_bits) | (0 if anchors else row.anchor_bits)
            assert not row.usage[1] & bits
            assert row.forbidden >> 8 * (row.length - 2) & bits == bits
