"""Extensions in other languages: a TOML file that says what a manifest says, and which program to start.

The program speaks the wire protocol (docs/wire-protocol.md) in a process of its own; in this process there is only
its manifest.  Nothing in the file is believed: what is wrong is told with the file, the key and what was expected.
"""

from __future__ import annotations

import errno
import keyword
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, cast

import msgspec
from msgspec import inspect as mi

from uxk.core.manifest import canonical, check_manifest
from uxk.core.params import parse_integer
from uxk.core.suggest import did_you_mean
from uxk.errors import ManifestError, ModuleError, NoSuchModule
from uxk.module import Extension
from uxk.uapi.manifest import Manifest, Params, param

SUFFIX: Final = ".toml"
_FILE_MAX_BYTES: Final = 1 << 20
_SHOWN_CHARS: Final = 60
_WORDS_MAX_CHARS: Final = 1 << 16
"""Of a command line; Linux takes 128 KiB in one word."""
_OURS: Final = ("exec", "params")
"""Keys of the file that are read here; the others are fields of the manifest."""
_PYTHON_ONLY: Final = ("ioctls", "placement", "host")
"""Fields that a file cannot have: types of Python's, and choices that there are not."""
_UNITS: Final = {"_bytes": "bytes", "_ns": "ns"}
"""Numbers whose names end so may be texts with units."""
_KINDS: Final[dict[str, type]] = {"int": int, "str": str, "bool": bool}


class Foreign(Extension):
    """An extension whose code is a program: every other method of it runs over there."""

    command: ClassVar[tuple[str, ...]]
    """The program and its arguments, as the file has them."""
    file: ClassVar[str]
    """Absolute path of the file; its folder is the program's working directory."""


class _Param(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter as a file declares it."""

    type: Literal["int", "str", "bool"]
    default: int | str | bool | None = None
    """None: it must be given."""
    help: str = ""
    unit: Literal["", "bytes", "ns"] = ""
    writable: bool = False
    ge: int | str | None = None
    gt: int | str | None = None
    le: int | str | None = None
    lt: int | str | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None


def read_file(path: Path) -> type[Foreign]:
    """The extension that a file describes.  ModuleError, ManifestError or NoSuchModule name file, key and cause."""
    where = str(path)
    table = _table(path)
    known = (*_OURS, *_fields(Manifest))
    for key in table:
        if key not in known:
            raise ManifestError(
                f"{where}: unknown key {_shown(key)}{did_you_mean(key, known)}; known: {', '.join(known)}"
            )
    command = _command(where, table.get("exec"))
    params = _params(where, table.get("params", {}))
    plain = {key: value for key, value in table.items() if key not in _OURS}
    manifest: Manifest = _converted(where, plain, Manifest, "")
    manifest = msgspec.structs.replace(manifest, params=params, placement="process")
    check_manifest(manifest, where=where)
    name = canonical(manifest.name)
    members = {"manifest": manifest, "command": command, "file": str(path.absolute())}
    return type(name, (Foreign,), {**members, "__doc__": None, "__module__": f"uxk_insmod_{name}"})


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _FILE_MAX_BYTES:
            raise ModuleError(f"{str(path)!r}: {path.stat().st_size} bytes, expected at most {_FILE_MAX_BYTES}")
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ModuleError(f"{str(path)!r}: {exc.strerror}", errno=exc.errno) from exc
    except (ValueError, RecursionError) as exc:  # no TOML, no UTF-8
        raise ModuleError(f"{path}: {exc}") from None


def _command(where: str, words: object) -> tuple[str, ...]:
    expected = "expected the program and its arguments, for example ['./driver']"
    if words is None:
        raise ManifestError(f"{where}: no key 'exec': {expected}")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise ManifestError(f"{where}: exec = {_shown(words)}: {expected}")
    if any("\0" in word for word in words) or sum(map(len, words)) > _WORDS_MAX_CHARS:
        raise ManifestError(f"{where}: exec: expected words without NUL, {_WORDS_MAX_CHARS} characters in all")
    return tuple(words)


def program(cls: type[Foreign]) -> tuple[str, ...]:
    """The program, as an absolute path, and its arguments.  NoSuchModule or ModuleError if there is no such program.

    One with a slash is looked for from the file's folder, one without as a shell does.
    """
    name, *words = cls.command
    if "/" not in name:
        found = shutil.which(name)
        if found is None:
            raise NoSuchModule(f"{cls.file}: exec: no program {name!r} on the PATH (beside the file: './{name}')")
        return (os.path.abspath(found), *words)
    file = Path(cls.file).parent.joinpath(name)
    if not file.is_file():
        raise NoSuchModule(f"{cls.file}: exec: no file {str(file)!r}, expected a program (compile it first?)")
    if not os.access(file, os.X_OK):
        raise ModuleError(f"{cls.file}: exec: {str(file)!r} may not be executed (chmod +x?)", errno=errno.EACCES)
    return (str(file), *words)


# --- parameters ------------------------------------------------------------------------------------------


def _params(where: str, tables: object) -> type[Params]:
    if not isinstance(tables, dict):
        raise ManifestError(f"{where}: params = {_shown(tables)}: expected a table for each parameter")
    fields: list[Any] = []
    for name, table in tables.items():
        place = f"params.{name}"
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ManifestError(f"{where}: {place}: expected a name of letters, digits and '_'")
        if not isinstance(table, dict):
            raise ManifestError(f"{where}: {place} = {_shown(table)}: expected a table with a key 'type'")
        fields.append(_field(where, place, name, _converted(where, table, _Param, place)))
    made = msgspec.defstruct("ForeignParams", fields, bases=(Params,), frozen=True, kw_only=True)
    return cast("type[Params]", made)


def _field(where: str, place: str, name: str, spec: _Param) -> tuple[Any, ...]:
    """As ``msgspec.defstruct`` takes it."""
    values: dict[str, Any] = {}
    for key in ("default", "ge", "gt", "le", "lt"):
        value = getattr(spec, key)
        if isinstance(value, str) and (key != "default" or spec.type == "int"):
            value = _integer(where, f"{place}.{key}", value, spec.unit)
        values[key] = value
    default, kind = values.pop("default"), _KINDS[spec.type]
    meta = param(
        **values, pattern=spec.pattern, min_length=spec.min_length, max_length=spec.max_length, help=spec.help,
        unit=spec.unit, writable=spec.writable,
    )  # fmt: skip
    kind = Annotated[kind, meta]  # type: ignore[assignment]
    try:
        mi.type_info(kind)
        if default is not None:
            msgspec.convert(default, kind)
    except msgspec.ValidationError as exc:
        raise ManifestError(f"{where}: {place}.default = {_shown(default)}: {exc}") from None
    except (TypeError, ValueError) as exc:
        raise ManifestError(f"{where}: {place}: {exc}") from None
    return (name, kind) if default is None else (name, kind, default)


# --- from plain data -------------------------------------------------------------------------------------


def _converted(where: str, table: Mapping[str, Any], kind: Any, place: str) -> Any:
    """A struct from a table: units resolved, unknown keys refused, what is wrong named."""
    prepared = _prepared(where, table, mi.type_info(kind), place, "")
    try:
        return msgspec.convert(prepared, kind)
    except msgspec.ValidationError as exc:
        reason, _, inner = str(exc).partition(" - at `")
        key = (place + inner.rstrip("`").removeprefix("$")).lstrip(".")
        value = _value_at(table, inner.rstrip("`").removeprefix("$"))
        raise ManifestError(f"{where}: {f'{key}{value}: ' if key else ''}{reason}") from None
    except (ValueError, OverflowError, RecursionError) as exc:
        raise ManifestError(f"{where}: {exc}") from None


def _value_at(value: Any, path: str) -> str:
    """``" = 5"``: the value that a path of msgspec's names, if it can be found."""
    try:
        for key in path.replace("[", ".[").split("."):
            if key.startswith("["):
                value = value[int(key[1:-1])]
            elif key:
                value = value[key]
    except (KeyError, IndexError, TypeError, ValueError):
        return ""
    return f" = {_shown(value)}"


def _prepared(where: str, value: Any, info: mi.Type, place: str, unit: str) -> Any:
    """``value`` with units resolved and keys checked, as far as it has the shape that ``info`` wants."""
    if isinstance(info, mi.Metadata):
        return _prepared(where, value, info.type, place, unit)
    if isinstance(info, mi.UnionType):
        for arm in info.types:
            if isinstance(arm, mi.StructType) if isinstance(value, dict) else isinstance(arm, mi.IntType):
                return _prepared(where, value, arm, place, unit)
    elif isinstance(info, mi.StructType) and isinstance(value, dict):
        return dict(_items(where, value, info, place))
    elif isinstance(info, mi.VarTupleType) and isinstance(value, list):
        return [_prepared(where, item, info.item_type, f"{place}[{i}]", "") for i, item in enumerate(value)]
    elif isinstance(info, mi.IntType) and isinstance(value, str) and unit:
        return _integer(where, place, value, unit)
    return value


def _items(where: str, table: dict[str, Any], info: mi.StructType, place: str) -> Iterator[tuple[str, Any]]:
    fields = {field.encode_name: field.type for field in info.fields}
    allowed = _fields(info.cls)
    for key, value in table.items():
        if key not in allowed:
            known = ", ".join(allowed)
            hint = did_you_mean(key, allowed)
            raise ManifestError(f"{where}: {place}: unknown key {_shown(key)}{hint}; known: {known}")
        unit = next((unit for suffix, unit in _UNITS.items() if key.endswith(suffix)), "")
        yield key, _prepared(where, value, fields[key], f"{place}.{key}".lstrip("."), unit)


def _fields(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """Keys that the table of a struct may have."""
    return tuple(
        field.encode_name for field in msgspec.structs.fields(cls)
        if cls is not Manifest or field.name not in (*_OURS, *_PYTHON_ONLY)
    )  # fmt: skip


def _integer(where: str, place: str, text: str, unit: str) -> int:
    try:
        return parse_integer(text, unit)
    except ValueError as exc:
        raise ManifestError(f"{where}: {place} = {_shown(text)}: {exc}, expected a number") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
