"""Sense data in both formats (SPC-5 clause 4.4)."""

import pytest

from pyiscsi_target.scsi.sense import (
    Asc,
    FieldPointer,
    ReservationConflict,
    ScsiError,
    SenseKey,
    encode_sense,
    invalid_cdb_field,
    invalid_parameter_field,
    no_sense,
)
from pyiscsi_target.scsi.task import Status


def test_fixed_format_is_18_bytes_of_current_sense() -> None:
    error = ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    assert encode_sense(error, descriptor=False).hex() == "700005000000000a00000000210000000000"


def test_fixed_format_carries_information_and_field_pointer() -> None:
    error = ScsiError(
        SenseKey.MEDIUM_ERROR,
        Asc.UNRECOVERED_READ_ERROR,
        field=FieldPointer(5, 3),
        information=0x01020304,
        command_specific=0x0A0B0C0D,
    )
    sense = encode_sense(error, descriptor=False)
    assert sense.hex() == "f000030102030" + "40a0a0b0c0d110000cb0005"


def test_information_too_wide_for_fixed_format_is_not_valid() -> None:
    error = ScsiError(
        SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR, information=1 << 32, command_specific=9
    )
    sense = encode_sense(error, descriptor=False)
    assert sense[0] == 0x70
    assert sense[3:7] == bytes(4)


def test_information_of_zero_is_valid() -> None:
    error = ScsiError(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY_OPERATION, information=0)
    assert encode_sense(error, descriptor=False)[0] == 0xF0


def test_descriptor_format_without_descriptors() -> None:
    assert encode_sense(no_sense(), descriptor=True).hex() == "7200000000000000"


def test_descriptor_format_lists_what_is_known() -> None:
    error = ScsiError(
        SenseKey.ABORTED_COMMAND,
        Asc.DATA_PHASE_ERROR,
        field=FieldPointer(0x0102, None, in_cdb=False),
        information=1 << 40,
        command_specific=7,
    )
    assert encode_sense(error, descriptor=True).hex() == (
        "720b4b0000000020000a80000000010000000000010a000000000000000000070206000080010200"
    )


@pytest.mark.parametrize(
    ("error", "asc", "pointer"),
    [
        (invalid_cdb_field(1, 4), Asc.INVALID_FIELD_IN_CDB, "cc0001"),
        (invalid_cdb_field(10), Asc.INVALID_FIELD_IN_CDB, "c0000a"),
        (invalid_parameter_field(2, 7), Asc.INVALID_FIELD_IN_PARAMETER_LIST, "8f0002"),
    ],
)
def test_field_pointers_of_the_shorthands(error: ScsiError, asc: Asc, pointer: str) -> None:
    assert error.sense_key is SenseKey.ILLEGAL_REQUEST
    assert error.asc is asc
    sense = encode_sense(error, descriptor=False)
    assert sense[12:14] == bytes(asc.value)
    assert sense[15:18].hex() == pointer


def test_reservation_conflict_is_a_status_without_sense() -> None:
    assert ReservationConflict().status is Status.RESERVATION_CONFLICT


def test_every_code_has_its_own_name() -> None:
    assert len(Asc) == len({asc.value for asc in Asc})
    assert list(Asc.__members__) == [asc.name for asc in Asc]  # an alias would vanish
