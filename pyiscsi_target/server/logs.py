"""One line per event on stderr: `time=... level=... event=... key=value ...`, or the same in JSON.

The order of a line's first three keys and the quoting are stable, so that both people and
programs can read them. Secrets never come here: callers pass plain values, and a `Secret` prints
as where it came from.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["kv", "json"]
Field = str | int | float | bool | None

LINES_MAX = 100  # of one kind in `WINDOW_S`: no peer and no full disk may fill the log
WINDOW_S = 10.0
_KINDS_MAX = 1000

_BARE = re.compile(r"[^\s\"=\\]+")


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    /,
    *,
    exc: BaseException | None = None,
    **fields: object,
) -> None:
    """Log one event; fields that are None are left out, `exc` adds its text and traceback."""
    if logger.isEnabledFor(level):
        logger.log(level, event, exc_info=exc, extra={"event_fields": fields})


def configure(
    log_format: LogFormat, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send every log record of this process to `stream` (stderr), once, in this format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    handler.addFilter(_Flood())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, _EventFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


class _Flood(logging.Filter):
    """Leaves out what is too much of one kind; `left_out` in the next line of it tells how many.

    Of one kind are records with the same event, or with the same text and first argument.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, ...], tuple[float, int]] = {}  # since when, and how many

    def filter(self, record: logging.LogRecord) -> bool:
        first = record.args[:1] if isinstance(record.args, tuple) else ()
        kind = (record.name, str(record.msg), *map(str, first))
        since_s, count = self._kinds.get(kind, (record.created, 0))
        if 0 <= record.created - since_s < WINDOW_S:
            self._kinds[kind] = since_s, count + 1
            return count < LINES_MAX
        if len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = record.created, 1
        record.left_out = max(0, count - LINES_MAX) or None
        return True


class _EventFormatter(logging.Formatter):
    """A record as its fields, in order; subclasses spell them."""

    def format(self, record: logging.LogRecord) -> str:
        return self.spell({key: value for key, value in _fields(record) if value is not None})

    def spell(self, fields: dict[str, Field]) -> str:
        raise NotImplementedError


class KeyValueFormatter(_EventFormatter):
    """`key=value`; a value with spaces, quotes, `=` or control characters is a JSON string."""

    def spell(self, fields: dict[str, Field]) -> str:
        return " ".join(f"{key}={_spell_value(value)}" for key, value in fields.items())


class JsonFormatter(_EventFormatter):
    """One JSON object a line."""

    def spell(self, fields: dict[str, Field]) -> str:
        return json.dumps(fields)


_FORMATTERS: dict[LogFormat, type[_EventFormatter]] = {
    "kv": KeyValueFormatter,
    "json": JsonFormatter,
}


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Field]]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    yield "time", time.replace("+00:00", "Z")
    yield "level", record.levelname.lower()
    fields = getattr(record, "event_fields", None)
    if fields is None:  # a library's own message
        yield "event", "message"
        yield "logger", record.name
        yield "message", record.getMessage()
    else:
        yield "event", record.getMessage()
        for key, value in fields.items():
            yield key, _plain(value)
    yield "left_out", getattr(record, "left_out", None)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        yield "exception", f"{type(error).__name__}: {error}"
        yield "traceback", "".join(traceback.format_exception(error))


def _plain(value: object) -> Field:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _spell_value(value: Field) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
