"""Extreme values of parameters, derived from their declared types and constraints."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import inspect as mi

from uxk.core.params import describe_params
from uxk.limits import I64_MAX, U64_MAX
from uxk.uapi.manifest import Params

_TEXT_LENGTH = 255


class Extremes(NamedTuple):
    """One parameter: values that its declaration admits, and values that it must refuse."""

    name: str
    writable: bool
    good: list[object]
    bad: list[object]


def extremes(cls: type[Params]) -> list[Extremes]:
    """Extreme values of every parameter of ``cls``; the default is the first good one where there is one."""
    found = []
    infos = {info.name: info for info in describe_params(cls)}
    for each in msgspec.structs.fields(cls):
        kind = _bare(mi.type_info(each.type))
        good, bad = _values(kind)
        if each.default is not msgspec.NODEFAULT:
            good.insert(0, each.default)
        elif each.default_factory is not msgspec.NODEFAULT:
            good.insert(0, each.default_factory())
        found.append(Extremes(each.name, infos[each.name].writable, good, bad))
    return found


def _bare(info: mi.Type) -> mi.Type:
    while isinstance(info, mi.Metadata):
        info = info.type
    return info


def _values(kind: mi.Type) -> tuple[list[object], list[object]]:
    if isinstance(kind, mi.UnionType):
        arms = [_bare(arm) for arm in kind.types if not isinstance(_bare(arm), mi.NoneType)]
        good, bad = _values(arms[0]) if len(arms) == 1 else ([], [])
        return [*([None] if kind.includes_none else []), *good], bad
    if isinstance(kind, mi.BoolType):
        return [True, False, "Y", "n", "0"], ["maybe", 2, "", []]
    if isinstance(kind, mi.IntType):
        return _integers(kind)
    if isinstance(kind, mi.FloatType):
        bounds: list[object] = [bound for bound in (kind.ge, kind.le) if bound is not None]
        return bounds, ["much", []]
    if isinstance(kind, mi.StrType):
        return _texts(kind)
    if isinstance(kind, mi.LiteralType):
        return list(kind.values), ["no-such-choice", []]
    if isinstance(kind, mi.EnumType):
        return [member.value for member in kind.cls], ["no-such-choice", []]
    return [], [object()]


def _integers(kind: mi.IntType) -> tuple[list[object], list[object]]:
    low = kind.ge if kind.ge is not None else None if kind.gt is None else kind.gt + 1
    high = kind.le if kind.le is not None else None if kind.lt is None else kind.lt - 1
    step = kind.multiple_of or 1
    first = -(-(low if low is not None else -I64_MAX - 1) // step) * step
    last = (high if high is not None else I64_MAX) // step * step
    bad: list[object] = ["forty-two", "", "0x", "1.5.2", [], U64_MAX + 1, -U64_MAX]
    bad += [] if low is None else [low - 1]
    bad += [] if high is None else [high + 1]
    bad += [] if step == 1 else [first + 1]
    return [first, str(last), last], bad


def _texts(kind: mi.StrType) -> tuple[list[object], list[object]]:
    shortest, longest = kind.min_length or 0, kind.max_length
    bad: list[object] = [7, [], b"\xff"]
    bad += ["x" * (shortest - 1)] if shortest else []
    bad += [] if longest is None else ["x" * (longest + 1)]
    if kind.pattern is not None:
        bad += [text for text in ("\0", "no such \u20ac", "") if not re.search(kind.pattern, text)]
        return [], bad
    return ["x" * shortest, "\u20ac" * min(longest or _TEXT_LENGTH, _TEXT_LENGTH)], bad
