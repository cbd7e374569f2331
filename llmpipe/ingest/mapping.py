"""Map the named fields of a record to a document, and say what is there when a mapping is wrong.

    mapped({"body": "…", "meta": {"lang": "zh"}}, place, file, 1, config)     # Row(key, file, values) or Drop(rule, place)

A field is a name, or a path such as `meta.lang` or `messages.0.content` into what is nested. `text_field` may list several.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmpipe.config import nearest
from llmpipe.errors import InputError
from llmpipe.ingest.files import File

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config

MAPPED = ("url", "title", "author", "date", "language", "license", "source")
SHOWN_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    """What the id is made of."""
    file: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drop:
    rule: str
    place: str
    """file:line, file:record or file."""
    snippet: str = ""
    value: Any = None
    threshold: Any = None


Item = Row | Drop


def broken(place: str, error: Exception | str) -> Drop:
    return Drop("broken_file", place, value=str(error)[:200] or type(error).__name__)


def text_fields(config: Config) -> list[str]:
    return [config.text_field] if isinstance(config.text_field, str) else config.text_field


def fields_of(config: Config) -> list[str]:
    """Every field that the config may take, each once."""
    fields = [*text_fields(config), config.id_field, *(getattr(config, f"{name}_field") for name in MAPPED), *config.meta_fields]
    return list(dict.fromkeys(f for f in fields if f))


def mapped(record: dict[str, Any], place: str, file: File, number: int, config: Config) -> Item:
    """Make a document of a record; `number` names it where it has no id of its own."""
    texts = [t for t in (pick(record, name) for name in text_fields(config)) if isinstance(t, str) and t.strip()]
    if not texts:
        return Drop("no_text", place, value=", ".join(text_fields(config)))
    text = "\n\n".join(texts)
    if len(text) > config.max_record_bytes:
        return Drop("too_long", place, value=len(text), threshold=config.max_record_bytes)
    values: dict[str, Any] = {"text": text}
    for name in MAPPED:
        column = getattr(config, f"{name}_field")
        if column and (value := pick(record, column)) is not None:
            values[name] = _string(value)
    if config.meta_fields:
        values["meta"] = {name: _string(value) for name in config.meta_fields if (value := pick(record, name)) is not None}
    key = f"{file.key}#{number}"
    if config.id_field:
        own = pick(record, config.id_field)
        if own is None:
            return Drop("no_id", place, value=config.id_field)
        key = _string(own)
    elif values.get("url"):
        key = values["url"]
    return Row(key, file.key, values)


def pick(record: Any, path: str) -> Any:
    """Take a field by its name, or by a path into maps and lists; None where there is none."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for part in path.split("."):
        if isinstance(record, dict):
            record = record.get(part)
        elif isinstance(record, list) and part.isdigit() and int(part) < len(record):
            record = record[int(part)]
        else:
            return None
    return record


def _string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)


def flat(record: dict[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    """Yield (path, type) of a record's fields, nested ones too."""
    for name, value in record.items():
        if isinstance(value, dict) and value and depth:
            yield from flat(value, f"{prefix}{name}.", depth - 1)
        else:
            yield f"{prefix}{name}", _TYPES.get(type(value).__name__, type(value).__name__)


_TYPES = {"str": "string", "NoneType": "null", "dict": "map"}
_TEXT_TYPES = ("string", "large_string", "string_view", "null", "mixed")


def check_columns(columns: dict[str, str], file: File, config: Config, required: list[str]) -> None:
    """Raise an `InputError` that shows the columns there are, by path and type, when one that the config needs isn't there."""
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(columns.items())[:SHOWN_COLUMNS]) + (f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else "")
    for name in required:
        below = [c for c in columns if c.startswith(f"{name}.")]
        if name not in columns and not below and not any(name.startswith(f"{c}.") for c in columns):
            near = nearest(name, columns)
            near = near if near.startswith("; did you mean") else ""  # all that is known follows anyway
            raise InputError(f"{file.name}: no field {name!r}{near}; it has {shown}", hint=_hint(columns, config))
        kind = columns.get(name, "map")
        if name in text_fields(config) and not kind.startswith(("dictionary<values=string", "dictionary<values=large_string")) and kind not in _TEXT_TYPES:
            if name in columns or below:
                raise InputError(f"{file.name}: column {name!r} holds {kind}, not text; it has {shown}", hint=_hint(columns, config))


def _hint(columns: dict[str, str], config: Config) -> str:
    strings = [name for name, kind in columns.items() if kind in ("string", "large_string", "string_view")]
    likely = [n for n in strings if n.rpartition(".")[2].lower() in ("text", "content", "body", "article", "document", "正文", "内容", "文本")] or strings
    return f"--set text_field={likely[0]}" if likely else "--set text_field=NAME, id_field, url_field, … say which field is which"
