"""How much memory an instance may hold: a figure of its manifest, and what goes with its parameters.

Rules are data, so that ``modinfo`` can show them and admission needs no code of the module's.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

from uxk import limits
from uxk.core.params import describe_params, format_param
from uxk.core.suggest import did_you_mean
from uxk.errors import ParamError
from uxk.uapi.info import Parameter
from uxk.uapi.manifest import Budget, Manifest, MemoryParam, Params

_PAGE: Final = limits.ARENA_PAGE_BYTES


def memory_bytes(manifest: Manifest, params: Params) -> int:
    """Bytes that an instance with these parameters may hold: every term in whole pages but the manifest's own."""
    budget = manifest.budget
    extra = [_value(part, params) for part in _parts(budget)]
    return budget.memory_bytes + sum(-(-size_bytes // _PAGE) * _PAGE for size_bytes in extra)


def memory_terms(manifest: Manifest, params: Params) -> list[str]:
    """The same as words for an error: ``memory_bytes=4096``, ``size=16384``; rules that do not apply are left out."""
    terms = [f"memory_bytes={manifest.budget.memory_bytes}"]
    parts = [part for part in _parts(manifest.budget) if _applies(part, params)]
    return terms + [f"{_scaled(part)}={_value(part, params)}" for part in parts]


def memory_text(part: str | MemoryParam) -> str:
    """A rule in words: ``size``, or ``size*5/512 when integrity=Y lba_bytes=512``."""
    part = _part(part)
    when = " ".join(f"{name}={pattern}" for name, pattern in part.when.items())
    return _scaled(part) + (f" when {when}" if when else "")


def memory_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the rules of a manifest, in words."""
    try:
        known = {info.name: info for info in describe_params(manifest.params)}
    except ParamError:
        return  # told already
    parts = list(_parts(manifest.budget))
    for part in parts:
        yield from _problems(part, known)
    if any(part in parts[:at] for at, part in enumerate(parts)):
        yield "budget.memory_params: a parameter is named twice"


def _problems(part: MemoryParam, known: dict[str, Parameter]) -> Iterator[str]:
    where = "budget.memory_params:"
    for name in (part.name, *part.when):
        info = known.get(name)
        what = f"{where} {name[: limits.NAME_MAX_BYTES]!r}"
        if info is None:
            yield f"{what} is no parameter{did_you_mean(name, known)}"
        elif name == part.name and (info.type_text != "int" or info.unit != "bytes"):
            unit = f"in {info.unit}" if info.unit else "without a unit"
            yield f"{what} is {info.type_text} {unit}, expected an int in bytes"
        elif info.writable:
            yield f"{what} is writable; memory is granted once"
    for field in ("times", "per"):
        value = getattr(part, field)
        if not 1 <= value <= limits.U32_MAX:
            yield f"{where} {part.name[: limits.NAME_MAX_BYTES]!r}: {field} is {value}, expected 1 to {limits.U32_MAX}"


def _part(part: str | MemoryParam) -> MemoryParam:
    return MemoryParam(part) if isinstance(part, str) else part


def _parts(budget: Budget) -> Iterator[MemoryParam]:
    return map(_part, budget.memory_params)


def _applies(part: MemoryParam, params: Params) -> bool:
    return all(fnmatchcase(format_param(getattr(params, name)), pattern) for name, pattern in part.when.items())


def _value(part: MemoryParam, params: Params) -> int:
    given: Any = getattr(params, part.name)
    return -(-max(0, given) * part.times // part.per) if _applies(part, params) else 0


def _scaled(part: MemoryParam) -> str:
    times = f"*{part.times}" if part.times != 1 else ""
    return part.name + times + (f"/{part.per}" if part.per != 1 else "")
