"""Where the keys of a TOML document stand, for messages. Knows nothing of what the keys mean."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tomlkit
from tomlkit.container import OutOfOrderTableProxy
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Item, Table

KeyPath = tuple[str | int, ...]
_Mark = tuple[KeyPath, int]  # what it stands for, how many line ends it hides
_Marker = Callable[[Any, KeyPath, list[_Mark]], None]

_FENCE = "\N{OBJECT REPLACEMENT CHARACTER}"
_MARK = re.compile(f"{_FENCE}([0-9]+){_FENCE}")
_BLOCKS = (Table, AoT, OutOfOrderTableProxy, tomlkit.TOMLDocument)


class KeyLines:
    """The line of every key and list item of one document, built with two renderings of it.

    tomlkit keeps every byte that it does not change, so marks put in the place of the values
    show, in the rendered document, on the lines where the values stand. That holds for all of
    TOML's spellings (tables, dotted keys, inline tables, arrays of either) without parsing here.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[KeyPath, int] = {}
        text = text.replace(_FENCE, "?")
        try:
            self._index(tomlkit.parse(text), _mark_block)
            self._index(tomlkit.parse(text), _mark_inside)
        except (TOMLKitError, LookupError, TypeError, ValueError):
            pass  # a message without a line is better than none

    def _index(self, document: tomlkit.TOMLDocument, mark_all: _Marker) -> None:
        marks: list[_Mark] = []
        mark_all(document, (), marks)
        rendered, end, line = tomlkit.dumps(document), 0, 1
        for found in _MARK.finditer(rendered):
            line += rendered.count("\n", end, found.start())
            path, hidden_lines = marks[int(found[1])]
            while path and path not in self._lines:  # a table without a header: its first key
                self._lines[path] = line
                path = path[:-1]
            line += hidden_lines
            end = found.end()

    def line_of(self, path: KeyPath) -> int | None:
        """The line (from 1) of `path`, or of its nearest ancestor that the text spells out."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)


def _children(container: Any) -> Iterator[tuple[str | int, Any]]:
    pairs = container.items() if isinstance(container, Mapping) else enumerate(container)
    return iter(list(pairs))


def _mark(path: KeyPath, marks: list[_Mark], replaced: object = None) -> str:
    hidden = replaced.as_string().count("\n") if isinstance(replaced, Item) else 0
    marks.append((path, hidden))
    return f"{_FENCE}{len(marks) - 1}{_FENCE}"


def _mark_block(container: Any, path: KeyPath, marks: list[_Mark]) -> None:
    """Mark the headers of tables and, whole, the values of their keys."""
    for key, item in _children(container):
        here = (*path, key)
        if not isinstance(item, _BLOCKS):
            container[key] = _mark(here, marks, item)
            continue
        if isinstance(item, Table):
            item.comment(_mark(here, marks))
        _mark_block(item, here, marks)


def _mark_inside(container: Any, path: KeyPath, marks: list[_Mark]) -> None:
    """Mark what stands within arrays and inline tables."""
    for key, item in _children(container):
        if isinstance(item, Mapping | list) and item:
            _mark_inside(item, (*path, key), marks)
        elif not isinstance(container, _BLOCKS):
            container[key] = _mark((*path, key), marks, item)


def spell(path: KeyPath) -> str:
    """`path` as a reader of TOML would write it: targets."iqn.x:y".initiators[0]."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += ("." if words else "") + _spell_key(part)
    return words


def _spell_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
