"""pydantic's complaints in the words of someone who edits a TOML file.

Knows the models only as a tree of keys; reads no file.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from .config_lines import KeyPath
from .config_model import Config

Complaint = tuple[KeyPath, str]

_WORDS: Mapping[str, str] = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text in quotes",
    "tuple_type": "must be a list; write [ ... ]",
    "dict_type": "must be a table; write {{ key = value }} or a [section]",
    "model_type": "must be a table; write {{ key = value }} or a [section]",
    "literal_error": "is not a choice; use {expected}",
    "greater_than_equal": "is too low; use at least {ge}",
    "less_than_equal": "is too high; use at most {le}",
    "string_too_short": "is empty; write something or leave the key out",
    "string_too_long": "is too long; use at most {max_length} characters",
    "too_short": "is empty; write at least one",
    "string_pattern_mismatch": "is not a name; use up to 64 letters, digits, '.', '_' and '-'",
}

# Below these keys no value is ever shown: a secret may stand there by mistake.
_SECRET_KEYS = frozenset({"chap", "mutual_chap"})


def complaint(detail: ErrorDetails, data: object) -> Complaint:
    """One of pydantic's errors on the document `data`: the key at fault and what to say of it."""
    path = tuple(part for part in detail["loc"] if part != "[key]")
    kind = detail["type"]
    if kind == "extra_forbidden":
        return path, _unknown_key(path)
    if kind == "missing":
        return path, f"is missing; add it, like {path[-1]} = {_example(path)}"
    path = _existing(_as_key(path), data)
    context = detail.get("ctx", {})
    if kind == "value_error":
        message = str(context["error"])
    else:
        message = _WORDS.get(kind, detail["msg"]).format_map(context)
    return path, _with_value(message, path, data, is_key="[key]" in detail["loc"])


def _as_key(path: KeyPath) -> KeyPath:
    """pydantic names the field of a default value; the file knows its key (`size`)."""
    model = _model_at(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model and path else None
    return (*path[:-1], field.alias) if field and field.alias else path


def _existing(path: KeyPath, data: Any) -> KeyPath:
    """As much of `path` as the file spells out (a plain text may stand for a whole table)."""
    for depth, part in enumerate(path):
        if isinstance(data, dict | list):
            try:
                data = data[part]  # type: ignore[index]
                continue
            except (LookupError, TypeError):
                return path[: depth + 1]
        return path[:depth]
    return path


def _with_value(message: str, path: KeyPath, data: Any, *, is_key: bool) -> str:
    if is_key or _SECRET_KEYS & set(path):
        return message
    for part in path:
        if not isinstance(data, dict | list) or (isinstance(data, dict) and part not in data):
            return message
        data = data[part]  # type: ignore[index]
    if isinstance(data, dict | list):
        return message
    value = json.dumps(data, ensure_ascii=False, default=str)
    value = value if len(value) <= 80 else value[:77] + "..."
    wrong, semicolon, right = message.partition("; ")
    return f"{wrong} ({value}){semicolon}{right}"


def _unknown_key(path: KeyPath) -> str:
    known = list(_keys_at(path[:-1]))
    near = get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"is not a known key; did you mean {near[0]!r}?"
    return f"is not a known key; known here: {', '.join(known)}"


def _example(path: KeyPath) -> str:
    field = _keys_at(path[:-1])[str(path[-1])]
    return repr(field.examples[0]) if field.examples else "..."


def _keys_at(path: KeyPath) -> dict[str, Any]:
    """The keys that the table at `path` may have, as the file spells them, with their fields."""
    model = _model_at(path)
    return _fields(model) if model is not None else {}


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    annotation: Any = Config
    for part in path:
        model = _model_in(annotation)
        if model is not None and str(part) in _fields(model):
            annotation = _fields(model)[str(part)].annotation
        # Otherwise `part` is an entry's name or index: the same annotation holds its model.
    return _model_in(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is about: M, M | None, tuple[M, ...], dict[str, M]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}
