"""The key=value codec: pairs, C-bit assembly, and the notations of section 6.1."""

import base64
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import LoginStatus, RejectReason
from pyiscsi_target.iscsi.text import (
    KEY_NAME_LENGTH,
    KEYS_PER_REQUEST,
    LARGE_BINARY_LENGTH,
    TEXT_TOTAL_LENGTH,
    Pairs,
    ProtocolError,
    TextAssembler,
    decode_pairs,
    encode_pairs,
    format_binary,
    parse_binary,
    parse_number,
)

names = st.from_regex(r"[A-Za-z][A-Za-z0-9.+@_#-]{0,62}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


class TestPairs:
    @given(st.lists(st.tuples(names, values), max_size=10))
    def test_round_trip(self, pairs: Pairs) -> None:
        assert decode_pairs(encode_pairs(pairs)) == pairs

    @pytest.mark.parametrize(
        ("data", "pairs"),
        [
            (b"", []),
            (b"A=b\0", [("A", "b")]),
            (b"A=b", [("A", "b")]),  # the last NUL is missing
            (b"A=b\0\0\0", [("A", "b")]),  # padded with NULs
            (b"A=\0", [("A", "")]),
            (b"A=b=c\0", [("A", "b=c")]),
            (b"A=1\0A=2\0", [("A", "1"), ("A", "2")]),  # duplicates are the reader's affair
            (b"A=\xc3\xa9\0", [("A", "é")]),
            (b"iSCSIProtocolLevel=1\0", [("iSCSIProtocolLevel", "1")]),
            (b"X-com.example.key=1\0", [("X-com.example.key", "1")]),
            (b"X#NodeArchitecture=x\0", [("X#NodeArchitecture", "x")]),
            (b"K" * KEY_NAME_LENGTH + b"=v\0", [("K" * KEY_NAME_LENGTH, "v")]),
        ],
    )
    def test_decoded(self, data: bytes, pairs: Pairs) -> None:
        assert decode_pairs(data) == pairs

    @pytest.mark.parametrize(
        "data",
        [
            b"novalue\0",
            b"=value\0",
            b"A =b\0",
            b"1A=b\0",
            b"A\xff=b\0",
            b"A=\xff\0",
            b"A=b\0junk",
            b"K" * (KEY_NAME_LENGTH + 1) + b"=v\0",
        ],
    )
    def test_refused(self, data: bytes) -> None:
        with pytest.raises(ProtocolError) as caught:
            decode_pairs(data)
        assert caught.value.status == LoginStatus.INITIATOR_ERROR
        assert caught.value.reason == RejectReason.PROTOCOL_ERROR

    def test_the_number_of_keys_is_bounded(self) -> None:
        assert len(decode_pairs(b"A=b\0" * KEYS_PER_REQUEST)) == KEYS_PER_REQUEST
        with pytest.raises(ProtocolError):
            decode_pairs(b"A=b\0" * (KEYS_PER_REQUEST + 1))

    @given(st.binary(max_size=200))
    def test_garbage_is_pairs_or_a_protocol_error(self, data: bytes) -> None:
        try:
            pairs = decode_pairs(data)
        except ProtocolError:
            return
        assert all(name and "\0" not in value for name, value in pairs)

    def test_an_error_shows_little_of_what_came(self) -> None:
        with pytest.raises(ProtocolError) as caught:
            decode_pairs(b"x" * 5000)
        assert len(str(caught.value)) < 100


class TestAssembler:
    @given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200), max_size=5))
    def test_parts_become_one(self, whole: bytes, cuts: list[int]) -> None:
        assembler = TextAssembler()
        edges = [0, *sorted(cuts), len(whole)]
        parts = [whole[a:b] for a, b in pairwise(edges)]
        for part in parts[:-1]:
            assert assembler.add(part, more=True) is None
        rest = whole[sum(map(len, parts[:-1])) :]
        assert assembler.add(rest, more=False) == whole

    def test_it_begins_anew_after_a_whole_request(self) -> None:
        assembler = TextAssembler()
        assembler.add(b"a", more=True)
        assert assembler.add(b"b", more=False) == b"ab"
        assert assembler.add(b"c", more=False) == b"c"

    def test_parts_are_copied(self) -> None:
        buffer = bytearray(b"before")
        assembler = TextAssembler()
        assembler.add(memoryview(buffer), more=True)
        buffer[:] = b"after!"
        assert assembler.add(b"", more=False) == b"before"

    def test_the_total_is_bounded(self) -> None:
        assembler = TextAssembler()
        for _ in range(TEXT_TOTAL_LENGTH // 8192):
            assembler.add(bytes(8192), more=True)
        with pytest.raises(ProtocolError):
            assembler.add(b"x", more=False)

    def test_a_bound_of_ones_own(self) -> None:
        assembler = TextAssembler(limit_bytes=4)
        assert assembler.add(b"1234", more=False) == b"1234"
        with pytest.raises(ProtocolError):
            assembler.add(b"12345", more=False)

    def test_empty_parts_are_bounded_too(self) -> None:
        assembler = TextAssembler()
        for _ in range(TEXT_TOTAL_LENGTH):
            assembler.add(b"", more=True)
        with pytest.raises(ProtocolError):
            assembler.add(b"", more=True)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("0", 0),
            ("1", 1),
            ("65535", 65535),
            ("0x10", 16),
            ("0X1f", 31),
            ("0x000f", 15),
            ("0xFfFf", 65535),
            ("18446744073709551615", 2**64 - 1),
            ("0xffffffffffffffff", 2**64 - 1),
        ],
    )
    def test_decimal_and_hexadecimal(self, text: str, number: int) -> None:
        assert parse_number(text, 0, 2**64 - 1) == number

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " 1",
            "1 ",
            "+1",
            "-1",
            "1_0",
            "01",
            "0x",
            "0xg",
            "1e3",
            "0b1",
            "0o7",
            "\u0661",
            "1\n",
        ],
    )
    def test_anything_else_is_none(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a number"):
            parse_number(text, 0, 1000)

    @pytest.mark.parametrize("text", ["511", "16777216", "0x1000000"])
    def test_the_range(self, text: str) -> None:
        with pytest.raises(ValueError, match="not within 512 to 16777215"):
            parse_number(text, 512, 16777215)

    def test_a_number_of_many_digits_is_not_computed(self) -> None:
        with pytest.raises(ValueError, match="not a number"):
            parse_number("9" * 5000, 0, 10)


class TestBinary:
    @given(st.binary(min_size=1, max_size=LARGE_BINARY_LENGTH))
    def test_both_notations(self, value: bytes) -> None:
        assert parse_binary(format_binary(value)) == value
        assert parse_binary("0X" + value.hex().upper()) == value
        encoded = base64.b64encode(value).decode()
        assert parse_binary("0b" + encoded) == value
        assert parse_binary("0B" + encoded) == value

    def test_an_odd_digit_is_the_low_half(self) -> None:
        assert parse_binary("0xabc") == b"\x0a\xbc"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "0x",
            "0b",
            "12",
            "abc",
            "0xgg",
            "0x1 2",
            "0xé0",
            "0b=",
            "0bQUJ",
            "0bQU JD",
            "0bQUJD-",
            "0bé===",
            "0o17",
        ],
    )
    def test_anything_else_is_none(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - binascii's messages are not ours
            parse_binary(text)

    @pytest.mark.parametrize("limit", [1, 2, 3, 16, 1024])
    def test_the_length_is_bounded(self, limit: int) -> None:
        fits, too_long = bytes(limit), bytes(limit + 1)
        for encode in (format_binary, lambda value: "0b" + base64.b64encode(value).decode()):
            assert parse_binary(encode(fits), limit) == fits
            with pytest.raises(ValueError, match="wrong length"):
                parse_binary(encode(too_long), limit)


def test_a_protocol_error_carries_an_answer_for_either_phase() -> None:
    error = ProtocolError("x", RejectReason.INVALID_PDU_FIELD, LoginStatus.NOT_FOUND)
    assert (str(error), error.reason, error.status) == ("x", 0x09, 0x0203)
