"""LUNs: numbers and eight bytes."""

import pytest

from pyiscsi_target.client.lun import decode_lun, encode_lun


@pytest.mark.parametrize(
    ("number", "raw"),
    [
        (0, 0),
        (1, 0x0001 << 48),
        (255, 0x00FF << 48),
        (256, 0x4100 << 48),
        (16383, 0x7FFF << 48),
        (0xC101 << 48, 0xC101 << 48),  # the REPORT LUNS well-known logical unit
        (0x0101 << 48, 0x0101 << 48),  # on another bus
        (0x0001_0002 << 32, 0x0001_0002 << 32),  # two levels
        (0x8001 << 48, 0x8001 << 48),  # logical unit addressing
    ],
)
def test_both_ways(number: int, raw: int) -> None:
    assert encode_lun(number) == raw
    assert decode_lun(raw) == number


@pytest.mark.parametrize("number", [-1, 16384, 1 << 31, 1 << 64])
def test_what_is_no_lun(number: int) -> None:
    with pytest.raises(ValueError, match="is no LUN"):
        encode_lun(number)


def test_a_small_number_in_flat_space_is_that_number() -> None:
    assert decode_lun(0x4005 << 48) == 5
