"""Sizes, endpoints, networks and secrets, each as a file may spell them."""

from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import ISCSI_PORT
from pyiscsi_target.server.config_values import (
    Endpoint,
    Secret,
    format_size,
    parse_endpoint,
    parse_network,
    parse_size,
    read_secret,
)


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        (512, 512),
        ("512", 512),
        ("512 B", 512),
        ("1 KiB", 1024),
        ("1k", 1024),
        ("10G", 10 * 2**30),
        ("10 GiB", 10 * 2**30),
        ("10 gib", 10 * 2**30),
        ("10 GB", 10 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("64TiB", 64 * 2**40),
        (" 1 MiB ", 2**20),
    ],
)
def test_sizes(value: object, size_bytes: int) -> None:
    assert parse_size(value) == size_bytes


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GiB",
        "1 Gibi",
        "-1",
        "1e9",
        "0x200",
        0,
        -512,
        True,
        1.5,
        None,
        [512],
        "0.3 KiB",
        "\u0661",
    ],
)
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match=r"; write"):
        parse_size(value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(10 * 2**30, "10 GiB"), (3 * 2**29, "1.5 GiB"), (513, "513 B"), (2**20, "1 MiB")],
)
def test_format_size(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("0.0.0.0:3260", Endpoint("0.0.0.0", 3260)),
        ("127.0.0.1:0", Endpoint("127.0.0.1", 0)),
        ("[::]:3260", Endpoint("::", 3260)),
        ("[fe80::1%eth0]:1", Endpoint("fe80::1%eth0", 1)),
        ("192.0.2.1", Endpoint("192.0.2.1", ISCSI_PORT)),
        ("[::1]", Endpoint("::1", ISCSI_PORT)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text, ISCSI_PORT) == endpoint


@pytest.mark.parametrize("text", ["0.0.0.0:3260", "[::1]:3260", "127.0.0.1:0"])
def test_endpoint_spells_itself(text: str) -> None:
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("::1:3260", r"write it like '\[::1\]:3260'"),
        ("::1", r"write it like '\[::1\]:3260'"),
        ("localhost:3260", "numeric address"),
        (":3260", "numeric address"),
        ("[127.0.0.1]:3260", "brackets"),
        ("127.0.0.1:65536", "port"),
        ("127.0.0.1:", "port"),
        ("127.0.0.1:-1", "port"),
        ("[::1]3260", "numeric address"),
    ],
)
def test_no_endpoints(text: str, right: str) -> None:
    with pytest.raises(ValueError, match=right):
        parse_endpoint(text, ISCSI_PORT)


def test_a_port_may_be_obligatory() -> None:
    with pytest.raises(ValueError, match="no port"):
        parse_endpoint("127.0.0.1")


@pytest.mark.parametrize("text", ["192.0.2.7/32", "192.0.2.0/24", "2001:db8::/32", "::1/128"])
def test_networks(text: str) -> None:
    assert str(parse_network(text)) == text


def test_a_network_with_host_bits_is_told_its_network() -> None:
    with pytest.raises(ValueError, match=r"write '192\.0\.2\.0/24'"):
        parse_network("192.0.2.7/24")


@pytest.mark.parametrize(
    "content", [b"twelve-bytes", b"twelve-bytes\n", b"\xef\xbb\xbftwelve-bytes\r\n"]
)
def test_a_secret_is_its_file_without_the_line_end(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert read_secret(path) == b"twelve-bytes"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"eleven-byte", "11 bytes"),
        (b"", "0 bytes"),
        ("twelve-bytes".encode("utf-16"), "UTF-16"),
        (b"twelve-bytes\nmore", "one line"),
        (b"x" * 5000, "one line"),
    ],
)
def test_bad_secrets_are_refused_without_quoting_them(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as refusal:
        read_secret(path)
    assert "eleven-byte" not in str(refusal.value)


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_secret(tmp_path / "none")


def test_a_secret_shows_only_on_demand() -> None:
    secret = Secret(b"twelve-bytes", Path("secrets/x"))
    assert secret.reveal() == b"twelve-bytes"
    assert "twelve" not in f"{secret} {secret!r} {[secret]}"
    assert secret == Secret(b"twelve-bytes", Path("elsewhere"))
    assert hash(secret) == hash(Secret(b"twelve-bytes", Path("elsewhere")))
    assert secret != b"twelve-bytes"
