"""Records: whole ones are read back, anything else is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.demo.records import Record


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("record", [Record(1, "A"), Record((1 << 64) - 1, "sixteen letters.")])
def test_a_record_fills_a_block(record: Record, block_size: int) -> None:
    block = record.encode(block_size)
    assert len(block) == block_size
    assert Record.decode(block) == record


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_block_with_a_wrong_byte_is_none(position: int, change: int) -> None:
    block = bytearray(Record(7, "A").encode(512))
    block[position] ^= change
    assert Record.decode(bytes(block)) is None


def test_a_torn_block_is_none() -> None:
    first, second = (Record(number, "A").encode(512) for number in (1, 2))
    assert Record.decode(first[:256] + second[256:]) is None


@given(st.binary(min_size=512, max_size=512))
def test_any_other_block_is_none(block: bytes) -> None:
    assert Record.decode(block) is None
