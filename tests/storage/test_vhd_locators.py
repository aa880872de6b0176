"""The spellings of a parent's path."""

from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhd_locators import decode, encode


def test_windows_spellings_are_utf_16_little_endian() -> None:
    data = encode(ParentPaths((".\\ü.vhd",), ("C:\\ü.vhd", "ignored")))
    assert data == {
        b"W2ru": b".\0\\\0\xfc\0.\0v\0h\0d\0",
        b"W2ku": b"C\0:\0\\\0\xfc\0.\0v\0h\0d\0",
    }
    assert decode(data, "") == ParentPaths((".\\ü.vhd",), ("C:\\ü.vhd",))


def test_a_path_ends_with_its_first_nul() -> None:
    assert decode({b"W2ru": "p.vhd\0junk".encode("utf-16-le")}, "").relative == ("p.vhd",)


def test_all_codes_are_read_and_the_best_comes_first() -> None:
    paths = decode(
        {
            b"Wi2k": b"C:\\ansi.vhd",
            b"Wi2r": b".\\ansi.vhd",
            b"MacX": b"file://localhost/dir/a%20b.vhd",
            b"W2ku": "C:\\wide.vhd".encode("utf-16-le"),
            b"W2ru": ".\\wide.vhd".encode("utf-16-le"),
            b"Mac ": b"\0\1\2",
        },
        "name.vhd",
    )
    assert paths.relative == (".\\wide.vhd", ".\\ansi.vhd")
    assert paths.absolute == ("C:\\wide.vhd", "/dir/a b.vhd", "C:\\ansi.vhd", "name.vhd")


def test_xenserver_writes_relative_urls() -> None:
    assert decode({b"MacX": b"file://./base.vhd"}, "").relative == ("./base.vhd",)


def test_garbage_is_some_path() -> None:
    assert decode({b"W2ru": b"\xff", b"MacX": b"\xff\xfe//["}, "").relative == ("\ufffd",)


def test_a_url_that_is_none_names_nothing() -> None:
    assert decode({b"MacX": b"file://[x/p.vhd"}, "p.vhd") == ParentPaths((), ("p.vhd",))
