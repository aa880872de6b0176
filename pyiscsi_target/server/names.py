"""iSCSI names: their form (RFC 7143 section 4.2.7) and their one comparable spelling (RFC 3722).

Pure functions on text. Knows nothing of who is admitted where.
"""

import re
import stringprep
import unicodedata

MAX_NAME_BYTES = 223  # RFC 7143 section 4.2.7.2, in UTF-8

EXAMPLE_IQN = "iqn.2026-11.lab.example:host"
PREFIXES = ("iqn.", "eui.", "naa.")

_FORMS = {
    "iqn.": (
        re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])(\.[^.:\s]+)+(:\S+)?"),
        "iqn.<yyyy-mm>.<reversed domain>[:<name>]",
    ),
    "eui.": (re.compile(r"eui\.[0-9a-f]{16}"), "eui.<16 hexadecimal digits>"),
    "naa.": (
        re.compile(r"naa\.([0-9a-f]{16}|[0-9a-f]{32})"),
        "naa.<16 or 32 hexadecimal digits>",
    ),
}

# RFC 3722 section 5: of ASCII, only these; of the rest, none of these tables of RFC 3454.
_ALLOWED_ASCII = frozenset("-.:0123456789abcdefghijklmnopqrstuvwxyz")
_PROHIBITED = (
    stringprep.in_table_c11_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,  # unassigned code points (RFC 3722 section 7)
)
_IDEOGRAPHIC_FULL_STOP = "\u3002"


def normalise(name: str) -> str:
    """The spelling by which names are compared: case folded, NFKC (RFC 3722 sections 3 and 4).

    Takes any text, so that a name from the wire can be compared before it is judged.
    """
    mapped = (stringprep.map_table_b2(c) for c in name if not stringprep.in_table_b1(c))
    return unicodedata.normalize("NFKC", "".join(mapped))


def check_form(name: str) -> str:
    """The normalised name. Raises ValueError saying which rule of section 4.2.7 it breaks."""
    name = normalise(name)
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise ValueError(f"is longer than {MAX_NAME_BYTES} bytes; shorten the name")
    prefix = name[:4]
    if prefix not in _FORMS:
        raise ValueError(
            f"is not an iSCSI name; begin with iqn., eui. or naa., like {EXAMPLE_IQN!r}"
        )
    pattern, form = _FORMS[prefix]
    if not pattern.fullmatch(name):
        raise ValueError(f"is not a well-formed iSCSI name; write {form}")
    return name


def check_name(name: str) -> str:
    """The normalised name, its form and its characters checked. Raises ValueError."""
    name = check_form(name)
    strange = prohibited_characters(name)
    if strange:
        raise ValueError(
            f"has characters that RFC 3722 does not allow: {strange}; "
            "use letters, digits, '-', '.' and ':'"
        )
    return name


def prohibited_characters(name: str) -> str:
    """The characters of a normalised name that RFC 3722 section 5 prohibits, each once."""
    return "".join(dict.fromkeys(c for c in name if _is_prohibited(c)))


def _is_prohibited(character: str) -> bool:
    if character.isascii():
        return character not in _ALLOWED_ASCII
    return character == _IDEOGRAPHIC_FULL_STOP or any(t(character) for t in _PROHIBITED)
