"""Sense data read back: what the device server encodes, and what others send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.client import Sense
from pyiscsi_target.scsi.sense import Asc, FieldPointer, ScsiError, SenseKey, encode_sense


@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize(
    ("error", "sense"),
    [
        (ScsiError(SenseKey.UNIT_ATTENTION, Asc.POWER_ON_OCCURRED), Sense(6, 0x29, 0x01)),
        (
            ScsiError(
                SenseKey.ILLEGAL_REQUEST,
                Asc.INVALID_FIELD_IN_CDB,
                field=FieldPointer(2, 7),
            ),
            Sense(5, 0x24, 0, field=FieldPointer(2, 7)),
        ),
        (
            ScsiError(
                SenseKey.ILLEGAL_REQUEST,
                Asc.INVALID_FIELD_IN_PARAMETER_LIST,
                field=FieldPointer(300, None, in_cdb=False),
            ),
            Sense(5, 0x26, 0, field=FieldPointer(300, None, in_cdb=False)),
        ),
        (
            ScsiError(
                SenseKey.MISCOMPARE,
                Asc.MISCOMPARE_DURING_VERIFY_OPERATION,
                information=0x1234,
                command_specific=9,
            ),
            Sense(0xE, 0x1D, 0, information=0x1234, command_specific=9),
        ),
    ],
)
def test_both_formats_say_the_same(error: ScsiError, sense: Sense, descriptor: bool) -> None:
    assert Sense.decode(encode_sense(error, descriptor)) == sense


def test_a_large_information_field_is_a_descriptor_only() -> None:
    error = ScsiError(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR, information=1 << 40)
    found = [Sense.decode(encode_sense(error, descriptor)) for descriptor in (False, True)]
    assert [sense.information for sense in found if sense] == [None, 1 << 40]


def test_deferred_errors_are_told() -> None:
    for code in (0x71, 0x73):
        sense = Sense.decode(bytes([code]) + bytes(17))
        assert sense is not None
        assert sense.deferred


def test_short_fixed_data_tells_its_key() -> None:
    assert Sense.decode(b"\x70\x00\x06") == Sense(6, 0, 0)


@pytest.mark.parametrize("raw", [b"", b"\x00" * 18, b"\x7f" + bytes(17)])
def test_what_is_no_sense_data(raw: bytes) -> None:
    assert Sense.decode(raw) is None


def test_a_descriptor_that_ends_early_is_left_out() -> None:
    raw = bytes([0x72, 5, 0x24, 0, 0, 0, 0, 8]) + b"\x00\x0a\x80\x00" + bytes(4)
    assert Sense.decode(raw) == Sense(5, 0x24, 0)


@given(st.binary(max_size=64))
def test_any_bytes_are_read(raw: bytes) -> None:
    sense = Sense.decode(raw)
    assert sense is None or str(sense)


@pytest.mark.parametrize(
    ("sense", "text"),
    [
        (Sense(6, 0x2A, 0x05), "UNIT ATTENTION, 2Ah/05h REGISTRATIONS PREEMPTED"),
        (Sense(5, 0x88, 0x12), "ILLEGAL REQUEST, 88h/12h"),
        (Sense(0x9, 0x88, 0x12), "sense key 9h, 88h/12h"),
    ],
)
def test_for_a_person(sense: Sense, text: str) -> None:
    assert str(sense) == text
    assert sense.is_unit_attention == (sense.key == 6)
