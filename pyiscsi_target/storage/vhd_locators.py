"""Parent locators of differencing VHDs: the spellings of a path, and their bytes.

VHD 1.0, "Dynamic Disk Header Format" (Parent Locator Entries) and "Implementing a Differencing
Hard Disk". Knows neither where in a file they lie nor whether such a parent exists.
"""

from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from .chain import ParentPaths

RELATIVE = b"W2ru"
ABSOLUTE = b"W2ku"
MAX_LENGTH_BYTES = 64 * 1024  # twice the longest path that Windows knows


def _utf_16(raw: bytes) -> str:
    return raw.decode("utf-16-le", "replace")


def _ansi(raw: bytes) -> str:
    return raw.decode("cp1252", "replace")


def _url(raw: bytes) -> str:
    """`file://localhost/dir/parent.vhd`; XenServer writes `file://./parent.vhd` too."""
    try:
        parts = urlsplit(raw.split(b"\0")[0].decode("utf-8", "replace"))
    except ValueError:
        return ""
    return unquote(("." if parts.netloc == "." else "") + parts.path)


# code: how its bytes spell a path. Absolute or not is seen from the path; "Mac " (an alias) is not
# a path. The best spelling comes first.
_SPELLINGS: dict[bytes, Callable[[bytes], str]] = {
    RELATIVE: _utf_16,
    ABSOLUTE: _utf_16,
    b"MacX": _url,
    b"Wi2r": _ansi,
    b"Wi2k": _ansi,
}
CODES = frozenset(_SPELLINGS)  # of what is read
_RELATIVE_CODES = frozenset({RELATIVE, b"Wi2r"})


def decode(data: Mapping[bytes, bytes], parent_name: str) -> ParentPaths:
    """The paths in the platform data, by their codes, and in the header's parent name."""
    relative: list[str] = []
    absolute: list[str] = []
    for code, spell in _SPELLINGS.items():
        text = spell(data[code]).split("\0")[0] if code in data else ""
        if text:
            is_relative = code in _RELATIVE_CODES or text.startswith(".")
            (relative if is_relative else absolute).append(text)
    if parent_name:
        absolute.append(parent_name)
    return ParentPaths(tuple(relative), tuple(absolute))


def encode(paths: ParentPaths) -> dict[bytes, bytes]:
    """The platform data by its codes."""
    texts = {RELATIVE: paths.relative[:1], ABSOLUTE: paths.absolute[:1]}
    return {code: text[0].encode("utf-16-le") for code, text in texts.items() if text}
