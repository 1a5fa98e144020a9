"""Module parameters: from text to typed values and back (Linux: kernel/params.c).

Command lines, ``modprobe.d`` and sysfs give text; Python callers give values.  Text is converted by
the parameter's type, then msgspec validates type and constraints.  Sizes and times are exact
integers.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from msgspec import inspect as mi

from uxk import limits
from uxk.core.suggest import did_you_mean
from uxk.errors import ParamError
from uxk.uapi.info import Parameter
from uxk.uapi.manifest import Params

P = TypeVar("P", bound=Params)

NULL: Final = "(null)"
"""Text of ``None``, as Linux shows a null ``charp``."""
_TRUE: Final = frozenset(("1", "y", "yes", "t", "true", "on"))
_FALSE: Final = frozenset(("0", "n", "no", "f", "false", "off"))
_BINARY: Final = {
    suffix: 1 << 10 * power
    for power, letter in enumerate("KMGTP", 1)
    for suffix in (letter, letter.lower(), f"{letter}i", f"{letter}iB")
}
_DECIMAL: Final = {f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", 1)}
_UNITS: Final[Mapping[str, Mapping[str, int]]] = {
    "": {"": 1},
    "bytes": {"": 1, "B": 1, "kB": 1000} | _BINARY | _DECIMAL,
    "ns": {"": 1, "ns": 1, "us": 10**3, "\u00b5s": 10**3, "\u03bcs": 10**3, "ms": 10**6}
    | {"s": limits.NS_PER_S, "min": 60 * limits.NS_PER_S, "h": 3600 * limits.NS_PER_S},
}
_EXAMPLE: Final = {"": "", "bytes": " bytes, for example '64KiB'", "ns": " ns, for example '10us'"}
_NUMBER: Final = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]{1,16})|([0-9]{1,20})(?:\.([0-9]{1,20}))? ?([^\W\d_]*))")
_INVALID: Final = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_SEQUENCES: Final = (mi.ListType, mi.VarTupleType, mi.SetType, mi.FrozenSetType)


def expected_text(info: Parameter) -> str:
    """Type, constraints and unit in one phrase, for messages."""
    return f"{info.type_text} {info.constraint_text}".rstrip() + _EXAMPLE.get(info.unit, "")


class _Spec(NamedTuple):
    info: Parameter
    field: msgspec.structs.FieldInfo
    type: mi.Type
    """Without annotations; a union with None stays a union."""


def parse_params(module: str, cls: type[P], values: Mapping[str, object]) -> P:
    """Parameters of ``module`` from text or typed values; what is not given has its default.

    ``-`` and ``_`` in names are the same.  Raises :class:`ParamError` naming module, parameter,
    value and what was expected.
    """
    specs = _specs(module, cls)
    given: dict[str, object] = {}
    for written, value in values.items():
        spec = _find(module, specs, written)
        if spec.info.name in given:
            raise ParamError(f"{module}: parameter {spec.info.name} is given twice")
        given[spec.info.name] = _value(module, spec, value)
    return _build(module, cls, specs, given)


def with_param(module: str, params: P, name: str, text: str) -> P:
    """``params`` with one value stored through sysfs; a trailing newline does not count.

    The whole struct is validated again.  Raises :class:`ParamError`; ``EACCES`` if it is not
    writable.
    """
    specs = _specs(module, type(params))
    spec = _find(module, specs, name)
    if not spec.info.writable:
        raise ParamError(
            f"{module}: parameter {spec.info.name} cannot be written while the module is loaded",
            errno=errno.EACCES,
        )
    given = {other.info.name: getattr(params, other.info.name) for other in specs.values()}
    given = {other: _valid(module, specs[other], value, value) for other, value in given.items()}
    given[spec.info.name] = _value(module, spec, text.removesuffix("\n"))
    return _build(module, type(params), specs, given)


def describe_params(cls: type[Params]) -> list[Parameter]:
    """Every parameter in declared order; :class:`ParamError` if ``cls`` cannot be inspected."""
    return [spec.info for spec in _specs(cls.__name__, cls).values()]


def format_param(value: object) -> str:
    """Text of a value as sysfs shows it, readable by :func:`parse_params`.

    ``Y``/``N`` for a bool, ``(null)`` for ``None``, commas between a list's items, else JSON.
    """
    if isinstance(value, Enum):
        return format_param(value.value)
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "Y" if value else "N"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [format_param(item) for item in value]
        if isinstance(value, (set, frozenset)):
            items.sort()
        plain = all(isinstance(item, (str, int, Enum)) or item is None for item in value)
        if plain and not any(t == "" or t != t.strip() or "," in t or t[0] == "[" for t in items):
            return ",".join(items)
    return msgspec.json.encode(value, order="deterministic").decode()


def parse_integer(text: str, unit: str = "") -> int:
    """An integer from text: decimal, or ``0x``; with a suffix if ``unit`` is "bytes" or "ns".

    ``1.5GiB`` is exact; ``1.5`` bytes are refused.  A leading zero is refused, since C reads it as
    octal. Raises ``ValueError``.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError("not an integer")
    sign, hexadecimal, whole, fraction, suffix = match.groups(default="")
    if hexadecimal:
        number = int(hexadecimal, 16)
    else:
        if len(whole) > 1 and whole[0] == "0":
            raise ValueError("a leading zero is ambiguous (octal in C)")
        factor = _factor(suffix, unit)
        number, rest = divmod(int(whole + fraction) * factor, 10 ** len(fraction))
        if rest:
            raise ValueError(f"not a whole number{f' of {unit}' if unit else ''}")
    number = -number if sign == "-" else number
    if not -limits.I64_MAX - 1 <= number <= limits.U64_MAX:
        raise ValueError("does not fit in 64 bits")
    return number


def _factor(suffix: str, unit: str) -> int:
    units = _UNITS.get(unit, _UNITS[""])
    if suffix in units:
        return units[suffix]
    if not unit:
        raise ValueError(f"takes no unit, but has {suffix!r}")
    raise ValueError(f"unknown unit {suffix!r}{did_you_mean(suffix, units)}")


_known: Final[WeakKeyDictionary[type[Params], dict[str, _Spec]]] = WeakKeyDictionary()
"""What classes were found to declare: looking costs 20 ms for a driver with fifty parameters."""


def _specs(module: str, cls: type[Params]) -> dict[str, _Spec]:
    known = _known.get(cls)
    if known is not None:
        return known
    specs: dict[str, _Spec] = {}
    place = f"class {cls.__name__}"
    try:  # annotations and default factories are the author's: they may raise anything
        for field in msgspec.structs.fields(cls):
            place = f"parameter {field.name}"
            specs[field.name] = _spec(field)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ParamError(f"{module}: {place} cannot be read: {text}") from error
    _known[cls] = specs
    return specs


def _spec(field: msgspec.structs.FieldInfo) -> _Spec:
    extra, help_text, info = _unwrap(mi.type_info(field.type))
    inner = info
    if isinstance(info, mi.UnionType):
        arms = [_unwrap(arm) for arm in info.types]
        for arm_extra, arm_help, _ in arms:
            extra, help_text = arm_extra | extra, help_text or arm_help
        info = mi.UnionType(tuple(arm for _, _, arm in arms))
        some = [arm for _, _, arm in arms if not isinstance(arm, mi.NoneType)]
        inner = some[0] if len(some) == 1 else info
    default = "required"
    if not field.required:
        default = format_param(field.default if field.default is not msgspec.NODEFAULT else field.default_factory())
    unit = str(extra.get("unit", ""))
    constraint = _constraint_text(inner)
    writable = bool(extra.get("writable"))
    text = _type_text(info)
    shown = Parameter(field.name, text, default, help_text, unit, writable, constraint)
    return _Spec(shown, field, info)


def _unwrap(info: mi.Type) -> tuple[dict[str, Any], str, mi.Type]:
    extra: dict[str, Any] = {}
    help_text = ""
    while isinstance(info, mi.Metadata):
        extra = (info.extra or {}) | extra
        help_text = help_text or str((info.extra_json_schema or {}).get("description", ""))
        info = info.type
    return extra, help_text, info


def _find(module: str, specs: Mapping[str, _Spec], written: str) -> _Spec:
    spec = specs.get(written) or specs.get(written.replace("-", "_"))
    if spec is None:
        known = ", ".join(specs) or "it takes none"
        hint = did_you_mean(written, specs)
        raise ParamError(f"{module}: unknown parameter {_shown(written)}{hint}; known: {known}")
    return spec


def _value(module: str, spec: _Spec, given: object) -> object:
    """``given`` converted by the parameter's type and validated."""
    if not isinstance(given, str):
        return _valid(module, spec, given, given)
    try:
        if len(given) > limits.SHOW_MAX_BYTES:
            raise ValueError(f"{len(given)} characters; at most {limits.SHOW_MAX_BYTES}")
        value = _from_text(given, spec.type, spec.info.unit)
    except _INVALID as error:
        raise _refusal(module, spec, given, str(error)) from None
    return _valid(module, spec, value, given)


def _valid(module: str, spec: _Spec, value: object, given: object) -> object:
    try:
        valid: object = msgspec.convert(value, spec.field.type)
    except _INVALID as error:
        inside = isinstance(value, (Sequence, Mapping)) and not isinstance(value, str)
        raise _refusal(module, spec, given, str(error) if inside else "") from None
    try:
        msgspec.msgpack.encode(valid)  # it will cross a queue: 64-bit integers, text that is UTF-8
        length = len(format_param(valid).encode())
    except _INVALID as error:
        raise _refusal(module, spec, given, f"cannot be sent: {error}") from None
    if length > limits.SHOW_MAX_BYTES:
        reason = f"{length} bytes as text; at most {limits.SHOW_MAX_BYTES}"
        raise _refusal(module, spec, given, reason)
    return valid


def _from_text(text: str, info: mi.Type, unit: str) -> object:
    if isinstance(info, mi.Metadata):
        extra, _, info = _unwrap(info)
        unit = str(extra.get("unit", unit))
    if isinstance(info, (mi.StrType, mi.AnyType)):
        return text
    if isinstance(info, mi.UnionType):
        return _from_union(text, info, unit)
    word = text.strip()
    if isinstance(info, mi.BoolType):
        return _boolean(word)
    if isinstance(info, mi.IntType):
        return parse_integer(word, unit)
    if isinstance(info, (mi.LiteralType, mi.EnumType)):
        choices = _choices(info)
        if word not in choices:
            raise ValueError(f"not one of them{did_you_mean(word, choices)}")
        return choices[word]
    if isinstance(info, _SEQUENCES) and not word.startswith("["):
        return [_from_text(item, info.item_type, unit) for item in text.split(",") if text]
    return msgspec.json.decode(word)


def _boolean(word: str) -> bool:
    if word.lower() not in _TRUE | _FALSE:
        raise ValueError("not a boolean")
    return word.lower() in _TRUE


def _from_union(text: str, info: mi.UnionType, unit: str) -> object:
    """The first arm that can read ``text``; strings last, since they can read anything."""
    if text == NULL and info.includes_none:
        return None
    reasons: list[str] = []
    for arm in sorted(info.types, key=lambda arm: isinstance(arm, (mi.StrType, mi.AnyType))):
        if not isinstance(arm, mi.NoneType):
            try:
                return _from_text(text, arm, unit)
            except _INVALID as error:
                reasons.append(str(error))
    if info.includes_none and text.strip().lower() == "none":
        return None
    raise ValueError(", ".join(reasons))


def _choices(info: mi.LiteralType | mi.EnumType) -> dict[str, object]:
    if isinstance(info, mi.EnumType):
        return {format_param(member): member.value for member in info.cls}
    return {format_param(value): value for value in sorted(info.values, key=str)}


def _build(module: str, cls: type[P], specs: Mapping[str, _Spec], given: Mapping[str, object]) -> P:
    for name, spec in specs.items():
        if name not in given and spec.field.required:
            expected = expected_text(spec.info)
            raise ParamError(f"{module}: parameter {name} is required; expected {expected}")
    try:
        return cls(**given)
    except Exception as error:  # __post_init__ is the author's: it may raise anything
        text = f"{type(error).__name__}: {error}"
        raise ParamError(f"{module}: parameters refused: {text}") from error


def _refusal(module: str, spec: _Spec, value: object, reason: str) -> ParamError:
    because = f"{reason}; " if reason else ""
    info = spec.info
    return ParamError(f"{module}: {info.name}={_shown(value)}: {because}expected {expected_text(info)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _type_text(info: mi.Type) -> str:
    _, _, info = _unwrap(info)
    if isinstance(info, mi.UnionType):
        return " or ".join(_type_text(arm) for arm in info.types)
    if isinstance(info, mi.NoneType):
        return NULL
    if isinstance(info, (mi.LiteralType, mi.EnumType)):
        return "|".join(_choices(info))
    if isinstance(info, _SEQUENCES):
        return f"array of {_type_text(info.item_type)}"
    if isinstance(info, mi.CustomType):
        return str(info.cls.__name__)
    return type(info).__name__.removesuffix("Type").lower()


def _constraint_text(info: mi.Type) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    signs |= {"min_length": "length >=", "max_length": "length <=", "pattern": "matching"}
    parts = []
    for attribute, sign in signs.items():
        bound = getattr(info, attribute, None)
        if bound is not None:
            parts.append(f"{sign} {bound!r}")
    return ", ".join(parts)
