"""From TOML and option texts to a :class:`~uxk.scenario.model.Scenario`; every complaint names its place."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

import msgspec
import msgspec.inspect as mi

from uxk.core.manifest import canonical
from uxk.core.params import parse_integer
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.scenario.model import Load, Scenario

FILE_MAX_BYTES: Final = 1 << 20
"""Largest scenario file."""
_PYTHON_ONLY: Final = frozenset({"drive"})
_TAG_DEFAULT: Final = {"loop": "closed"}
_SHOWN_CHARS: Final = 60

S = TypeVar("S", bound=msgspec.Struct)


class Validated(Protocol):
    """A struct that knows what its fields do not."""

    def validate(self) -> Self:
        """Itself; raises :class:`ConfigError`."""
        ...


V = TypeVar("V", bound=Validated)


def read_scenario(path: str | Path) -> tuple[Scenario, str]:
    """A scenario file and its text.  Raises :class:`ConfigError` naming file, place, value and what was expected."""
    path = Path(path)
    text = read_text(path)
    return parse_toml(text, str(path), base=path.parent), text


def read_text(path: Path) -> str:
    """The text of a file that is not too large.  Raises :class:`ConfigError`."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path}: larger than {FILE_MAX_BYTES} bytes")
        return path.read_bytes().decode()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", errno=exc.errno) from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: byte {exc.start} is no UTF-8") from None


def parse_toml(text: str, where: str, *, base: Path | None = None) -> Scenario:
    """A scenario from TOML text; ``where`` names it in complaints.  A module's ``file`` is taken from ``base``."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as exc:
        raise ConfigError(f"{where}: {exc}") from None
    table.setdefault("name", Path(where).stem)
    if "study" in table:
        raise ConfigError(f"{where}: a study, not a scenario: uxk run {Path(where).stem}")
    try:
        scenario = convert(table, Scenario)
        if base is not None:
            loads = tuple(_located(load, base) for load in scenario.modules)
            scenario = msgspec.structs.replace(scenario, modules=loads)
        return scenario.validate()
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}", errno=exc.errno) from None


def _located(load: Load, base: Path) -> Load:
    return msgspec.structs.replace(load, file=str(base / load.file)) if load.file else load


def convert(table: Mapping[str, Any], cls: type[S]) -> S:
    """A struct from plain data, with units; unknown keys are refused with a suggestion."""
    prepared = _prepared(table, mi.type_info(cls), "", "")
    converted: S = _valid(prepared, cls, "")
    return converted


def _valid(value: Any, kind: Any, place: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        reason, _, path = str(exc).partition(" - at `")
        path = path.rstrip("`").removeprefix("$")
        where = (place + path).lstrip(".") or "scenario"
        shown = _shown(value, path)
        words = _words(kind, path) if reason.startswith("Invalid enum value") else ()
        expected = f"; expected one of {', '.join(map(str, words))}" if words else ""
        raise ConfigError(f"{where}{shown}: {reason}{expected}") from None
    except (OverflowError, RecursionError, ValueError) as exc:
        raise ConfigError(f"{place or 'scenario'}: {exc}") from None


def _words(kind: Any, path: str) -> tuple[Any, ...]:
    """What a field that a path of msgspec's leads to may be, if it is a choice of words and can be found."""
    info = mi.type_info(kind)
    for key in [*filter(None, path.replace("[", ".[").split(".")), ""]:
        while isinstance(info, mi.Metadata):
            info = info.type
        if isinstance(info, mi.UnionType):  # a table that may be missing
            info = next((each for each in info.types if isinstance(each, mi.StructType)), info)
        if isinstance(info, mi.StructType) and key:
            found = [field.type for field in info.fields if field.encode_name == key]
            info = found[0] if found else mi.AnyType()
        elif isinstance(info, mi.VarTupleType) and key:
            info = info.item_type
    return tuple(info.values) if isinstance(info, mi.LiteralType) else ()


def _shown(value: Any, path: str) -> str:
    """``" = 5"``: the value that a path of msgspec's names, if it can be found and is short."""
    try:
        for key in path.replace("[", ".[").split("."):
            if key.startswith("["):
                value = value["loop"] if key == "[...]" else value[int(key[1:-1])]
            elif key:
                value = value[key]
    except (KeyError, IndexError, TypeError, ValueError):
        return ""
    text = repr(value)
    return f" = {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '...'}"


def _prepared(value: Any, info: mi.Type, place: str, unit: str) -> Any:
    """``value`` with units resolved and keys checked, as far as it has the shape that ``info`` wants."""
    match info:
        case mi.Metadata():
            return _prepared(value, info.type, place, str((info.extra or {}).get("unit", unit)))
        case mi.UnionType():
            return _prepared_union(value, info, place, unit)
        case mi.StructType() if isinstance(value, dict):
            return _prepared_table(value, info, place)
        case mi.VarTupleType() if isinstance(value, list):
            return [_prepared(item, info.item_type, f"{place}[{i}]", unit) for i, item in enumerate(value)]
        case mi.IntType() if isinstance(value, str) and unit:
            try:
                return parse_integer(value, unit)
            except ValueError as exc:
                raise ConfigError(f"{place} = {value[:_SHOWN_CHARS]!r}: {exc}, expected a number of {unit}") from None
    return value


def _prepared_union(value: Any, info: mi.UnionType, place: str, unit: str) -> Any:
    structs = [arm for arm in info.types if isinstance(arm, mi.StructType)]
    if structs and isinstance(value, dict):
        field = structs[0].tag_field or ""
        tag = value.get(field, _TAG_DEFAULT.get(field))
        for struct in structs:
            if struct.tag == tag:
                return {**_prepared_table(value, struct, place), **({field: tag} if field else {})}
        return value
    for arm in info.types:
        metadata = arm if isinstance(arm, mi.Metadata) else None
        if metadata and isinstance(metadata.type, mi.IntType) and isinstance(value, str):
            words = {word for other in info.types if isinstance(other, mi.LiteralType) for word in other.values}
            if value not in words:
                return _prepared(value, metadata, place, unit)
    return value


def _prepared_table(value: dict[str, Any], info: mi.StructType, place: str) -> dict[str, Any]:
    fields = {field.encode_name: field.type for field in info.fields if field.encode_name not in _PYTHON_ONLY}
    allowed = [*fields, *([info.tag_field] if info.tag_field else [])]
    out: dict[str, Any] = {}
    for key, item in value.items():
        inner = f"{place}.{key}".lstrip(".")
        if key not in allowed:
            shown = key if len(key) <= _SHOWN_CHARS else key[:_SHOWN_CHARS] + "..."
            known = ", ".join(sorted(allowed))
            raise ConfigError(
                f"{place or 'scenario'}: unknown key {shown!r}{did_you_mean(key, allowed)}; known: {known}"
            )
        out[key] = _prepared(item, fields[key], inner, "") if key in fields else item
    return out


# --- options -----------------------------------------------------------------------------------------------


def with_options(scenario: V, options: Mapping[str, str]) -> V:
    """The scenario (or study) with values replaced: ``{"workloads.load.depth": "64", "until": "1s"}``.

    Elements of a list are named by their name, instance or number.  Raises :class:`ConfigError`.
    """
    for path, text in options.items():
        scenario = _replaced(scenario, path.split("."), text, path)
    return scenario.validate()


def _replaced(node: Any, keys: list[str], text: str, path: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(node, msgspec.Struct):
        types = _field_types(type(node))
        if key not in types:
            raise ConfigError(f"-o {path}: unknown key {key!r}{did_you_mean(key, types)}; known: {', '.join(types)}")
        value = _replaced(getattr(node, key), rest, text, path) if rest else _from_text(text, types[key], path)
        return msgspec.structs.replace(node, **{key: value})
    if isinstance(node, tuple):
        labels = [_labels(item, number) for number, item in enumerate(node)]
        wanted = canonical(key)
        found = next((number for number, names in enumerate(labels) if wanted in map(canonical, names)), None)
        if found is None or not rest:
            known = [names[0] for names in labels]
            what = f"no element {key!r}{did_you_mean(key, known)}" if found is None else "names no field"
            raise ConfigError(f"-o {path}: {what}; known: {', '.join(known) or 'none'}")
        return (*node[:found], _replaced(node[found], rest, text, path), *node[found + 1 :])
    if isinstance(node, dict):
        return {**node, key: _replaced(node.get(key, {}), rest, text, path) if rest else _scalar(text)}
    raise ConfigError(f"-o {path}: {key!r} is inside a plain value")


def _labels(item: Any, number: int) -> list[str]:
    """What an element may be called; the first is for messages."""
    names = [getattr(item, "instance", ""), getattr(item, "name", ""), str(number)]
    return [name for name in names if name] + ([f"{item.kind}-{number}"] if hasattr(item, "kind") else [])


@cache
def _field_types(cls: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(cls) if field.name not in _PYTHON_ONLY}


def _from_text(text: str, kind: Any, path: str) -> Any:
    try:
        value = _prepared(text, mi.type_info(kind), path, "")
        for candidate in (_scalar(value), value):  # a number or boolean if the field takes one, else a word
            with suppress(msgspec.ValidationError):
                return msgspec.convert(candidate, kind)
        return _valid(_scalar(value), kind, path)
    except ConfigError as exc:
        raise ConfigError(f"-o {exc}") from None


def _scalar(text: Any) -> Any:
    """A text as the number or boolean that it spells, as TOML would read it; else itself."""
    try:
        value = tomllib.loads(f"x = {text}")["x"] if isinstance(text, str) and "\n" not in text else text
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (int, float)) else text
