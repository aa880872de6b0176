"""What a target says comes out as text and nothing else."""

import pytest

from pyiscsi_target.validate.wording import (
    describe_attentions,
    describe_bytes,
    describe_keys,
    printable,
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("disk 1", "disk 1"),
        ("\x1b[2Jdisk\r\n\x00", "\ufffd[2Jdisk\ufffd\ufffd\ufffd"),
        ("right\u202eleft", "right\ufffdleft"),
        (b"disk\xff", "disk\ufffd"),
        ("x" * 300, "x" * 200 + "..."),
    ],
)
def test_only_text_comes_out(said: str | bytes, shown: str) -> None:
    assert printable(said) == shown


def test_unit_attentions_have_names() -> None:
    assert describe_attentions([(0x2A, 0x05), (0x99, 0x01)]) == (
        "2Ah/05h REGISTRATIONS PREEMPTED, 99h/01h"
    )
    assert describe_attentions([]) == "no unit attention"


def test_keys_are_hexadecimal() -> None:
    assert describe_keys([1, 0xABC]) == "0000000000000001h, 0000000000000ABCh"
    assert describe_keys([]) == "no key"


def test_bytes_are_hexadecimal() -> None:
    assert describe_bytes(b"\x01\xab") == "01 AB"
    assert describe_bytes(bytes(3), limit=2) == "00 00 ..."
    assert describe_bytes(b"") == "nothing"
