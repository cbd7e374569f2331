"""Turn YAML, environment and flags into a strict frozen dataclass, or into a list of all that is wrong with them.

    config = load(clean.Config, file=Path("clean.yaml"), sets=["filters=[gopher_quality]"], stage="clean")

Types come from the dataclass, never from YAML's guess: a scalar stays the text that was written until its field says
what it is, so `6e-4` is a float where a float is wanted and `no` is Norwegian in a list of languages.
Precedence: defaults < YAML < LLMPIPE_<STAGE>_<KEY> < --set < flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from llmpipe.data.manifest import digest_input
from llmpipe.errors import UsageError

T = TypeVar("T")
MAX_YAML_BYTES = 1_000_000
MAX_YAML_NODES = 100_000


class Text(str):
    """A YAML scalar as written. `plain` is False when it stood in quotes."""

    plain: bool = True


def cosmetic(default: Any = MISSING, **kwargs: Any) -> Any:
    """Declare a field that cannot change the result (an interval, a worker count): it stays out of the fingerprint."""
    return field(default=default, metadata={"recipe": False}, **kwargs)


def secret(default: Any = MISSING, **kwargs: Any) -> Any:
    """Declare a cosmetic field whose values no output, error or log may show. Names of variables (`$TOKEN`) are shown."""
    return field(default=default, metadata={"recipe": False, "secret": True}, **kwargs)


# --- reading YAML -------------------------------------------------------------------------------------------------


class _Loader(yaml.BaseLoader):
    """BaseLoader that keeps whether a scalar was quoted, refuses duplicate keys and bounds what aliases can blow up."""

    nodes = 0

    def construct_scalar(self, node: yaml.ScalarNode) -> Text:
        text = Text(super().construct_scalar(node))
        text.plain = node.style is None
        return text

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        self.nodes += 1
        if self.nodes > MAX_YAML_NODES:
            raise yaml.YAMLError(f"more than {MAX_YAML_NODES} nodes")
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
                    seen.add(key.value)
        return super().construct_object(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_scalar)


def parse(text: str, where: str) -> Any:
    """Read YAML text as nested dicts, lists and `Text`; `where` names it in errors."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        problem = str(error) if not isinstance(error, yaml.MarkedYAMLError) else f"line {(error.problem_mark.line if error.problem_mark else 0) + 1}: {error.problem}"
        raise UsageError(f"{where}: not valid YAML ({problem})") from None
    finally:
        loader.dispose()


def read_yaml(path: Path) -> Any:
    """Read one YAML file as nested dicts, lists and `Text`."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"{path}: larger than {MAX_YAML_BYTES} bytes, not a config")
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file", hint="llmpipe config init STAGE prints one with every key explained") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None


# --- merging the sources ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A raw value with the base that relative paths in it refer to."""

    raw: Any
    base: Path | None


def load(
    cls: type[T],
    *,
    stage: str,
    file: Path | None = None,
    mapping: Mapping[str, Any] | None = None,
    base: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> T:
    """Build `cls` from all sources; raise one `UsageError` that lists every fault with its dotted path.

    `mapping` is a step of a pipeline in place of `file`, `base` the directory of the YAML that it came from.
    `flags` hold values that are typed already; None means not given.
    """
    tree: dict[str, Any] = {}
    faults: list[str] = []
    if file is not None:
        mapping, base = read_yaml(file), file.resolve().parent
        if mapping is not None and not isinstance(mapping, dict):
            raise UsageError(f"{file}: a config is a mapping of keys to values")
    _merge(tree, mapping or {}, base)
    for key, text in _environment(stage, os.environ if environ is None else environ).items():
        _assign(tree, key, Value(parse(text, f"{key} in the environment"), Path.cwd()))
    for item in sets:
        key, eq, text = item.partition("=")
        if not eq or not key.strip():
            shown = re.split(r"[{\[:]", item)[0]  # what follows may hold a password
            raise UsageError(f"--set {shown!r}: expected KEY=VALUE", hint="for example --set near.threshold=0.8")
        _assign(tree, key.strip(), Value(parse(text, f"--set {key}") if text else Text(""), Path.cwd()))
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key, Value(value, Path.cwd()))
    result = _convert(cls, tree, "", faults)
    if faults:
        place = f"{file}: " if file else f"{stage}: "
        raise UsageError("\n".join(place + f for f in faults), hint=f"llmpipe config init {stage} shows every key with its default")
    return result


def _merge(tree: dict[str, Any], mapping: Mapping[str, Any], base: Path | None) -> None:
    for key, raw in mapping.items():
        if isinstance(raw, dict):
            node = tree.setdefault(str(key), {})
            if isinstance(node, dict):
                _merge(node, raw, base)
                continue
        tree[str(key)] = raw if isinstance(raw, Value) else Value(raw, base)


def _assign(tree: dict[str, Any], dotted: str, value: Value) -> None:
    *parents, last = dotted.split(".")
    node = tree
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    if isinstance(value.raw, dict):
        node[last] = {}
        _merge(node[last], value.raw, value.base)
    else:
        node[last] = value


def _environment(stage: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Pick `LLMPIPE_<STAGE>_<KEY>`; `__` is the dot of a nested key."""
    prefix = f"LLMPIPE_{stage.upper()}_"
    return {k[len(prefix) :].lower().replace("__", "."): v for k, v in sorted(environ.items()) if k.startswith(prefix)}


# --- checking against the dataclass -------------------------------------------------------------------------------


def _convert(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Convert a tree of `Value` to `kind`; append to `faults` and return None where that fails."""
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, path, faults)
    base = None
    if isinstance(value, Value):
        value, base = value.raw, value.base
    return _convert_raw(kind, value, base, path, faults)


def _convert_dataclass(kind: type, tree: Any, path: str, faults: list[str]) -> Any:
    if isinstance(tree, Value):
        tree = _spread(tree)
    if isinstance(tree, kind):
        return tree
    if not isinstance(tree, dict):
        faults.append(f"{path or 'config'}: expected keys and values, got {_show(tree)}")
        return None
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    before, values = len(faults), {}
    for key, raw in tree.items():
        here = f"{path}.{key}" if path else key
        if key not in fields:
            faults.append(f"{here}: unknown key{_nearest(key, fields)}")
            continue
        told = len(faults)
        values[key] = _convert(hints[key], raw, here, faults) if not _is_null(raw, hints[key]) else None
        if fields[key].metadata.get("secret"):
            faults[told:] = [_without_login(re.sub(r", got .*", "", fault, flags=re.S)) for fault in faults[told:]]
    for name, f in fields.items():
        if name not in tree and f.default is MISSING and f.default_factory is MISSING:
            faults.append(f"{path + '.' if path else ''}{name}: missing, and it has no default")
    if len(faults) > before:
        return None
    try:
        return kind(**values)
    except (ValueError, UsageError) as error:  # __post_init__ checks what spans several fields
        faults.append(f"{path + ': ' if path else ''}{error}")
        return None


def _convert_raw(kind: Any, raw: Any, base: Path | None, path: str, faults: list[str]) -> Any:
    if isinstance(raw, Value):  # of a map, whose entries may come from several sources
        raw, base = raw.raw, raw.base
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, args, raw, base, path, faults)
    if kind is Any:
        return _plain(raw)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, Value(raw, base) if not isinstance(raw, kind) else raw, path, faults)
    if origin is Literal:
        choices = {str(a): a for a in args}
        if str(raw) in choices:
            return choices[str(raw)]
        faults.append(f"{path}: {_show(raw)} is not one of {', '.join(choices)}{_nearest(str(raw), choices)}")
        return None
    if origin in (list, tuple):
        if isinstance(raw, Text) and raw.plain and raw == "":
            raw = []
        if not isinstance(raw, list | tuple):
            faults.append(f"{path}: expected a list such as [a, b], got {_show(raw)}")
            return None
        return origin(_convert_raw(args[0], item, base, f"{path}[{i}]", faults) for i, item in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, dict):
            faults.append(f"{path}: expected a mapping such as {{a: 1}}, got {_show(raw)}")
            return None
        return {str(k): _convert_raw(args[1], v, base, f"{path}.{k}", faults) for k, v in raw.items()}
    return _convert_scalar(kind, raw, base, path, faults)


def _convert_union(kind: Any, args: tuple, raw: Any, base: Path | None, path: str, faults: list[str]) -> Any:
    if type(None) in args and _is_null(raw, kind):
        return None
    best: list[str] | None = None
    for option in (a for a in args if a is not type(None)):
        tried: list[str] = []
        value = _convert_raw(option, raw, base, path, tried)
        if not tried:
            return value
        if best is None or len(tried) < len(best) or (isinstance(raw, dict) and dataclasses.is_dataclass(option)):
            best = tried
    options = [a for a in args if a is not type(None)]
    faults.extend(best or [] if len(options) == 1 or isinstance(raw, dict) else [f"{path}: expected {_name(kind)}, got {_show(raw)}"])
    return None


def _convert_scalar(kind: Any, raw: Any, base: Path | None, path: str, faults: list[str]) -> Any:
    try:
        if isinstance(raw, list | dict):
            raise ValueError
        if kind is bool:
            if isinstance(raw, bool):
                return raw
            return {"true": True, "false": False}[str(raw).lower()]
        if kind is int:
            return raw if isinstance(raw, int) and not isinstance(raw, bool) else int(str(raw).replace("_", "")) if "e" not in str(raw) else _whole(str(raw))
        if kind is float:
            number = float(str(raw).replace("_", ""))
            if number != number:
                raise ValueError
            return number
        if kind is Path:
            text = os.path.expanduser(str(raw))
            return Path(text) if base is None or os.path.isabs(text) else Path(os.path.normpath(base / text))
        if kind is str:
            return str(raw)
    except (ValueError, KeyError):
        faults.append(f"{path}: expected {_name(kind)}, got {_show(raw)}")
        return None
    raise TypeError(f"{path}: a config field cannot be of type {kind!r}")


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _is_null(raw: Any, kind: Any) -> bool:
    """Whether a plain `null`, `~` or nothing stands where the field allows None."""
    if isinstance(raw, Value):
        raw = raw.raw
    if type(None) not in typing.get_args(kind):
        return False
    return raw is None or (isinstance(raw, Text) and raw.plain and raw in ("", "~", "null", "Null", "NULL"))


def _spread(value: Value) -> Any:
    if not isinstance(value.raw, dict):
        return value.raw
    tree: dict[str, Any] = {}
    _merge(tree, value.raw, value.base)
    return tree


def _plain(raw: Any) -> Any:
    if isinstance(raw, Value):
        raw = raw.raw
    if isinstance(raw, dict):
        return {str(k): _plain(v) for k, v in raw.items()}
    if isinstance(raw, list):
        return [_plain(v) for v in raw]
    return str(raw) if isinstance(raw, Text) else raw


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Say which known name is meant, or list them: the end of an error on an unknown name."""
    return _nearest(name, known)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        value = {k: v.raw if isinstance(v, Value) else v for k, v in value.items()}
    text = str(_plain(value))
    return repr(text if len(text) <= 80 else text[:77] + "...")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _name(kind: Any) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    args = [a for a in typing.get_args(kind) if a is not type(None)]
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, args))
    if typing.get_origin(kind) in (list, tuple):
        return f"a list of {_name(args[0])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_name(a) for a in args))
    return "keys and values" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind))


# --- what a resolved config says ----------------------------------------------------------------------------------


def recipe_of(config: Any) -> dict[str, Any]:
    """Reduce a config to what can change the result: without cosmetic fields, paths replaced by their content's digest."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        if f.metadata.get("recipe") is False:
            continue
        out[f.name] = _recipe_value(getattr(config, f.name), f.name)
    return out


def _recipe_value(value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return recipe_of(value)
    if isinstance(value, Path):
        if not value.exists():
            raise UsageError(f"{name}: {value} does not exist")
        return f"sha256:{digest_input(value)}"
    if isinstance(value, list | tuple):
        return [_recipe_value(v, name) for v in value]
    if isinstance(value, dict):
        return {k: _recipe_value(v, name) for k, v in value.items()}
    return value


def diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the leaves in which two recipes differ: `filters.min_chars 100 -> 200`."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += diff(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key} {_brief(a)} -> {_brief(b)}")
    return lines


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_dict(config: Any) -> Any:
    """Turn a config into plain values that YAML and JSON can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: (_masked if f.metadata.get("secret") else as_dict)(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, list | tuple):
        return [as_dict(v) for v in config]
    if isinstance(config, dict):
        return {str(k): as_dict(v) for k, v in config.items()}
    return config


_SHOWN = re.compile(r"\$[A-Z_][A-Z0-9_]*|\$\{\w+\}|env(:\w+)?|none|https?://[\w.-]+(:\d+)?/?")


def _masked(value: Any) -> Any:
    """Hide the texts of a secret field, but for names of variables and addresses without a login."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _masked(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {_without_login(str(k)): _masked(v) for k, v in value.items()}
    return value if value is None or isinstance(value, bool) else str(value) if isinstance(value, Path) or _SHOWN.fullmatch(str(value)) else "***"


def secret_texts(config: Any) -> set[str]:
    """Collect the texts that `as_dict` hides."""
    hidden = [getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata.get("secret")] if dataclasses.is_dataclass(config) else []
    return {text for text in leaves(hidden) if len(text) > 3 and not _SHOWN.fullmatch(text)}


def leaves(value: Any) -> set[str]:
    """Collect the texts in nested dicts, lists and dataclasses, keys left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return leaves([getattr(value, f.name) for f in dataclasses.fields(value)])
    if isinstance(value, dict):
        return leaves(list(value.values()))
    if isinstance(value, list | tuple):
        return {text for item in value for text in leaves(item)}
    return {str(value)} if isinstance(value, str) else set()


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(as_dict(config), allow_unicode=True, sort_keys=False, width=120)


def template(cls: type, indent: str = "") -> str:
    """Write a YAML with every key of `cls`, its default, and its docstring as a comment."""
    import ast
    import inspect
    import textwrap

    docs: dict[str, str] = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[node.target.id] = " ".join(str(after.value.value).split())
    lines = []
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else MISSING
        if f.name in docs:
            lines += textwrap.wrap(docs[f.name], 110 - len(indent), initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            lines += [f"{indent}{f.name}:", template(type(default), indent + "  ").rstrip("\n")]
            continue
        value = "" if default is MISSING else yaml.safe_dump(as_dict(default), default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
        lines.append(f"{indent}{'# ' if default is MISSING else ''}{f.name}: {value}".rstrip())
    return "\n".join(lines) + "\n"
