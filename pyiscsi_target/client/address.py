"""Where a target is: portals, `iscsi://` URLs and TargetAddress values. Text in, values out."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from ..iscsi.constants import ISCSI_PORT

SCHEME = "iscsi"
URL_FORM = f"{SCHEME}://HOST[:PORT]/TARGET[/LUN]"

_PORT_MAXIMUM = 65535
_LUN_MAXIMUM = 16383  # what flat space addressing can say (SAM-6 clause 4.7.7.3)
_TARGET_NAME = re.compile(r"(?:iqn|eui|naa)\.[^\s/]+")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?")


@dataclass(frozen=True, slots=True)
class Portal:
    """A network portal: a host name or address (IPv6 without brackets) and a TCP port."""

    host: str
    port: int = ISCSI_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`. Raises ValueError that says what is wrong."""
        match = _HOST_AND_PORT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not HOST[:PORT]; an IPv6 address stands in brackets")
        port = int(match["port"] or ISCSI_PORT)
        if not 0 < port <= _PORT_MAXIMUM:
            raise ValueError(f"{text!r} has no port between 1 and {_PORT_MAXIMUM}")
        return cls(match["v6"] or match["host"], port)


@dataclass(frozen=True, slots=True)
class TargetAddress:
    """One TargetAddress of a target (RFC 7143 section 13.8): portal and portal group tag."""

    portal: Portal
    group_tag: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`domainname[:port][,portal-group-tag]`. Raises ValueError."""
        address, comma, tag = text.partition(",")
        if comma and not (tag.isascii() and tag.isdigit()):
            raise ValueError(f"{text!r} has a portal group tag that is no number")
        return cls(Portal.parse(address), int(tag) if comma else None)


@dataclass(frozen=True, slots=True)
class TargetUrl:
    """What an `iscsi://` URL names; `lun` is None where it names none."""

    portal: Portal
    target: str
    lun: int | None = None

    def __str__(self) -> str:
        lun = "" if self.lun is None else f"/{self.lun}"
        return f"{SCHEME}://{self.portal}/{self.target}{lun}"


def parse_url(url: str) -> TargetUrl:
    """`iscsi://HOST[:PORT]/TARGET[/LUN]`. Raises ValueError that says what is wrong.

    A URL with a user or a password in it is refused: it would end up in shell histories and
    process lists; `read_chap_file` is the way to give a secret.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() != SCHEME:
        raise ValueError(f"{url.partition('@')[2] or url!r} is not {URL_FORM}")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"a URL holds no user and no secret; write {URL_FORM} and a CHAP file")
    if parts.query or parts.fragment:
        raise ValueError(f"nothing may follow the LUN in {URL_FORM}")
    if not parts.netloc:
        raise ValueError(f"the host is missing; write {URL_FORM}")
    target, _, lun = unquote(parts.path).removeprefix("/").partition("/")
    if not _TARGET_NAME.fullmatch(target):
        raise ValueError(
            f"{target!r} is no target name: iqn., eui. or naa. begins one; write {URL_FORM}"
        )
    return TargetUrl(Portal.parse(parts.netloc), target, _parse_lun(lun))


def _parse_lun(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > _LUN_MAXIMUM:
        raise ValueError(f"{text!r} is no LUN: a number up to {_LUN_MAXIMUM}")
    return int(text)
