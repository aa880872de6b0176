"""CRC32C as it stands on the wire: the examples of RFC 7143 appendix A.4 (RFC 3720 B.4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.digest import DIGEST_LENGTH, digest, matches

READ_10_PDU = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018"
    "28000000 00000000 02000000 00000000"
)

EXAMPLES = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(range(31, -1, -1)), "5cdb3f11"),
    (READ_10_PDU, "563a96d9"),
]


@pytest.mark.parametrize(("covered", "wire"), EXAMPLES)
def test_the_standards_examples(covered: bytes, wire: str) -> None:
    assert digest(covered) == bytes.fromhex(wire)
    assert matches(covered, bytes.fromhex(wire), 0)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_parts_are_covered_as_one(data: bytes, cut: int) -> None:
    assert digest(data[:cut], memoryview(data)[cut:]) == digest(data)


@given(st.binary(max_size=100), st.integers(0, 31))
def test_any_wrong_bit_is_noticed(data: bytes, bit: int) -> None:
    wrong = int.from_bytes(digest(data), "big") ^ 1 << bit
    wire = b"before" + wrong.to_bytes(DIGEST_LENGTH, "big")
    assert not matches(memoryview(data), wire, len(b"before"))
