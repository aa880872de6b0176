"""The small values of a config file: sizes, endpoints, secrets. Text in, values out, no tables.

Every function raises ValueError whose message says what is wrong and, after a semicolon, what
would be right; the caller adds file, line and key.
"""

import ipaddress
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ..iscsi.constants import ISCSI_PORT

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_BINARY = {letter: 1024**power for power, letter in enumerate("KMGTP", start=1)}
_UNITS = {
    "": 1,
    "b": 1,
    **{letter.lower(): factor for letter, factor in _BINARY.items()},
    **{f"{letter.lower()}ib": factor for letter, factor in _BINARY.items()},
    **{f"{letter.lower()}b": 1000**power for power, letter in enumerate("KMGTP", start=1)},
}


def parse_size(value: object) -> int:
    """Bytes of 10737418240, "10 GiB", "10G" (both binary) or "10 GB" (decimal)."""
    if isinstance(value, int) and not isinstance(value, bool):
        size_bytes = value
    else:
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        factor = _UNITS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ValueError("is not a size; write a number of bytes or text like '10 GiB'")
        exact = Decimal(match[1]) * factor
        size_bytes = int(exact)
        if size_bytes != exact:
            raise ValueError("is not a whole number of bytes; write an exact size like '10 GiB'")
    if size_bytes <= 0:
        raise ValueError("is not a size; write more than 0 bytes, like '10 GiB'")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """The size as a person would write it: '10 GiB', '1.5 GiB', '513 B'."""
    for letter, factor in reversed(_BINARY.items()):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + f" {letter}iB"
    return f"{size_bytes} B"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A numeric address and a TCP port to listen on; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """`192.0.2.1:3260`, `[2001:db8::1]:3260`, `[fe80::1%eth0]:3260`; without a port the default."""
    wanted = f"write an address and a port, like '0.0.0.0:{default_port or 9860}'"
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") > 1 and "[" not in text:
        raise ValueError(f"has an IPv6 address without brackets; write it like {_bracket(text)!r}")
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"is not a numeric address with a port; {wanted}") from None
    if (address.version == 6) != bool(bracketed):
        raise ValueError(f"has brackets around something else than IPv6; {wanted}")
    if port is None and default_port is not None:
        return Endpoint(str(address), default_port)
    return Endpoint(str(address), _parse_port(port or "", wanted))


def _bracket(text: str) -> str:
    address, _, port = text.rpartition(":")
    return f"[{address}]:{port}" if port == str(ISCSI_PORT) else f"[{text}]:{ISCSI_PORT}"


def _parse_port(text: str, wanted: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError(f"has no port between 0 and 65535; {wanted}")
    return int(text)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> Network:
    """An address or a network: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        right = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            "is not an IP address or network; write '192.0.2.7' or '192.0.2.0/24'"
        ) from None
    raise ValueError(f"has bits set beyond the prefix; write {str(right)!r}")


MAX_SECRET_FILE_BYTES = 4096
MIN_SECRET_BYTES = 12  # 96 bits: RFC 7143 section 12.1.3
MAX_WINDOWS_SECRET_BYTES = 16


def read_secret(path: Path) -> bytes:
    """The secret in a file: all of it but a final end of line. The message never quotes it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; create it with the secret as its only line, "
            "readable by this server alone (mode 0600)"
        ) from None
    if b"\x00" in content:
        raise ValueError(f"{path} holds UTF-16 or binary data; save it as plain ASCII text")
    secret = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in secret or len(content) > MAX_SECRET_FILE_BYTES:
        raise ValueError(f"{path} holds more than one line; write the secret as its only line")
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(
            f"{path} holds a secret of {len(secret)} bytes; "
            f"use {MIN_SECRET_BYTES} to {MAX_WINDOWS_SECRET_BYTES} (RFC 7143 asks for 96 bits)"
        )
    return secret


class Secret:
    """A CHAP secret and the file that it came from; its text shows only through `reveal`."""

    __slots__ = ("_value", "path")

    def __init__(self, value: bytes, path: Path) -> None:
        self._value = value
        self.path = path

    def reveal(self) -> bytes:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"Secret(from {str(self.path)!r})"
