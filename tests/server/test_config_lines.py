"""Lines of keys, over every spelling that TOML has for a path."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.server.config_lines import KeyLines, KeyPath, spell

DOCUMENT = """\
# a comment
[server]
portals = [
  "a",   # one
  "b",
]
flag = true

[disks]
one.path = "x"

[apart]
k = 1
[between]
k = 2
[apart.again]
k = 3
inline = { x = 1, y = { z = [1,
  2] } }

[[list]]
n = 1
[[list]]
n = \"\"\"
two
lines\"\"\"
m = 2
[list.sub]
q = 1
[targets."iqn.2026-11.lab.example:x"]  # a comment
luns = { 0 = "q" }
initiators = [
  "iqn", [
  { name = "z", luns = { 0 = "p" } }],
]
[empty]
[no.header.leaf]
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("server",), 2),
        (("server", "portals"), 3),
        (("server", "portals", 0), 4),
        (("server", "portals", 1), 5),
        (("server", "flag"), 7),
        (("disks",), 9),
        (("disks", "one"), 10),
        (("disks", "one", "path"), 10),
        (("apart",), 13),
        (("apart", "k"), 13),
        (("apart", "again"), 16),
        (("apart", "again", "k"), 17),
        (("apart", "again", "inline", "y", "z", 1), 19),
        (("list", 0), 21),
        (("list", 0, "n"), 22),
        (("list", 1, "n"), 24),
        (("list", 1, "m"), 27),
        (("list", 1, "sub", "q"), 29),
        (("targets", "iqn.2026-11.lab.example:x"), 30),
        (("targets", "iqn.2026-11.lab.example:x", "luns", "0"), 31),
        (("targets", "iqn.2026-11.lab.example:x", "initiators"), 32),
        (("targets", "iqn.2026-11.lab.example:x", "initiators", 0), 33),
        (("targets", "iqn.2026-11.lab.example:x", "initiators", 1, 0, "luns", "0"), 34),
        (("empty",), 36),
        (("no", "header", "leaf"), 37),
    ],
)
def test_line_of(path: KeyPath, line: int) -> None:
    assert KeyLines(DOCUMENT).line_of(path) == line


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("server", "missing"), 2),
        (("server", "portals", 7), 3),
        (("disks", "one", "missing", "deep"), 10),
        (("missing",), None),
        ((), None),
    ],
)
def test_what_is_not_there_has_the_line_of_what_is_around_it(
    path: KeyPath, line: int | None
) -> None:
    assert KeyLines(DOCUMENT).line_of(path) == line


def test_no_toml_has_no_lines() -> None:
    assert KeyLines("= [").line_of(("a",)) is None


KEYS = st.text("ab-_. \"'é", min_size=1, max_size=4)
SCALARS = st.one_of(st.integers(0, 9), st.booleans(), st.sampled_from(["x", "two\nlines", "#"]))
INLINE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def _spell_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_spell_key(key)} = {_spell_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_spell_value(item)}, # c\n" for item in value) + "]"
    if isinstance(value, str) and "\n" in value:
        return f'"""{value}"""'
    return json.dumps(value)


def _spell_key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _lines(value: Any, path: KeyPath, line: int) -> Iterator[tuple[KeyPath, int]]:
    """The line of each path within `_spell_value(value)`, which itself begins at `line`."""
    yield path, line
    line += isinstance(value, list)
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(child, dict | list):
            yield from _lines(child, (*path, key), line)
        else:
            yield (*path, key), line
        line += _spell_value(child).count("\n") + isinstance(value, list)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, INLINE, max_size=4), max_size=4))
def test_every_path_of_a_generated_document_has_its_line(document: dict[str, Any]) -> None:
    text = ""
    expected: dict[KeyPath, int] = {}
    for name, table in document.items():
        text += f"\n[{_spell_key(name)}] # t\n"
        expected[(name,)] = text.count("\n")
        for key, value in table.items():
            line = text.count("\n") + 1
            text += f"{_spell_key(key)} = {_spell_value(value)}\n"
            whole = _lines(value, (name, key), line) if isinstance(value, dict | list) else ()
            expected |= {(name, key): line, **dict(whole)}
    lines = KeyLines(text)
    for path, line in expected.items():
        found = lines.line_of(path)
        if len(path) <= 2 or not isinstance(_value(document, path), dict | list):
            assert found == line, (path, text)
        else:  # within a list, a container is known by the first thing in it
            assert found is not None
            assert found >= line, (path, text)


def _value(document: Any, path: KeyPath) -> Any:
    for part in path:
        document = document[part]
    return document


def test_spell() -> None:
    path = ("targets", "iqn.2026-11.lab.example:x", "initiators", 0, 'a "b"')
    assert spell(path) == 'targets."iqn.2026-11.lab.example:x".initiators[0]."a \\"b\\""'
