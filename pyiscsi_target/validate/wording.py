"""What a target says, in words that are safe to show: whatever it sends, only text comes out.

Knows no check.
"""

from collections.abc import Iterable

from ..scsi.sense import Asc

Attention = tuple[int, int]  # ASC and ASCQ of a unit attention condition

_NAMES: dict[Attention, str] = {asc.value: asc.name.replace("_", " ") for asc in Asc}
_TEXT_MAXIMUM = 200


def printable(text: str | bytes, *, limit: int = _TEXT_MAXIMUM) -> str:
    """Text of a target without anything that a terminal or a reader could take for a command."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    clean = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return clean if len(clean) <= limit else clean[:limit] + "..."


def describe_attentions(codes: Iterable[Attention]) -> str:
    """Unit attentions that a nexus heard, by code and name."""
    return ", ".join(map(_describe_attention, codes)) or "no unit attention"


def _describe_attention(code: Attention) -> str:
    number = f"{code[0]:02X}h/{code[1]:02X}h"
    return f"{number} {_NAMES[code]}" if code in _NAMES else number


def describe_key(key: int) -> str:
    """A reservation key."""
    return f"{key:016X}h"


def describe_keys(keys: Iterable[int]) -> str:
    """Reservation keys, in their order."""
    return ", ".join(map(describe_key, keys)) or "no key"


def describe_bytes(data: bytes, *, limit: int = 40) -> str:
    """Binary data as hexadecimal digits."""
    digits = data[:limit].hex(" ").upper() + (" ..." if len(data) > limit else "")
    return digits or "nothing"
