"""A fault between kernel and instance as one line, and the attribute through which a running kernel takes them.

``/sys/kernel/faults``: ``add kind=hang module=null duration_ns=1s``, ``rm NAME``, ``clear``; reading gives the faults
as they can be written back, with what they did as a comment.
"""

from __future__ import annotations

import errno
from typing import Any, Final

import msgspec

from uxk.core.params import parse_integer
from uxk.core.suggest import did_you_mean
from uxk.core.tree import Attribute
from uxk.errors import ConfigError
from uxk.faults.model import Fault
from uxk.faults.plan import FaultPlan
from uxk.kernel.kernel import Kernel
from uxk.limits import SHOW_MAX_BYTES

PATH: Final = "/sys/kernel/faults"
LINE_MAX_CHARS: Final = 512
LIVE_MAX: Final = 24
"""Faults of a running kernel: their lines must fit into one attribute."""
_DEVICE_ONLY: Final = frozenset({"rule", "attribute"})
_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(Fault) if field.name not in _DEVICE_ONLY}
_INTEGERS: Final = frozenset({"probability_ppm", "count", "after", "factor", "entries"})
_UNITS: Final = ("ns", "bytes")


def parse_fault(text: str) -> Fault:
    """A fault from ``key=value`` words.  ConfigError names word, value and what was expected."""
    values: dict[str, Any] = {}
    if len(text) > LINE_MAX_CHARS:
        raise ConfigError(f"a fault of {len(text)} characters, expected at most {LINE_MAX_CHARS}")
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"{word!r}: expected KEY=VALUE")
        if key not in _FIELDS:
            raise ConfigError(f"{word!r}: no such key{did_you_mean(key, _FIELDS)}; known: {', '.join(_FIELDS)}")
        if key in values:
            raise ConfigError(f"{word!r}: {key} is given twice")
        values[key] = _value(key, value)
    try:
        return msgspec.convert(values, Fault)
    except msgspec.ValidationError as exc:
        raise ConfigError(str(exc)) from None


def _value(key: str, text: str) -> int | str:
    unit = next((unit for unit in _UNITS if key.endswith(f"_{unit}")), "")
    if not unit and key not in _INTEGERS:
        return text
    try:
        return parse_integer(text, unit)
    except ValueError as exc:
        raise ConfigError(f"{key}={text}: {exc}, expected a number{f' of {unit}' if unit else ''}") from None


def render_fault(fault: Fault) -> str:
    """The line that :func:`parse_fault` reads as the same fault."""
    values = msgspec.structs.asdict(fault)
    return " ".join(f"{key}={values[key]}" for key, field in _FIELDS.items() if values[key] != field.default)


class LiveFaults:
    """Publishes a plan that an administrator fills while the kernel runs."""

    def __init__(self, kernel: Kernel) -> None:
        self.plan = FaultPlan(kernel, ())
        kernel.machine.tree.add_attribute(
            "/sys/kernel", Attribute("faults", show=lambda _: self.show(), store=lambda _, text: self.store(text))
        )

    def show(self) -> str:
        """One line a fault."""
        lines = (
            f"add {render_fault(msgspec.structs.replace(each.fault, name=each.name))} # fired={self.plan.fired(each)}"
            for each in self.plan.strikers
        )
        return "\n".join(lines)

    def store(self, text: str) -> None:
        """One command a line; those before a mistake stay done."""
        for number, line in enumerate(text.splitlines(), 1):
            word, _, rest = line.partition("#")[0].strip().partition(" ")
            try:
                self._command(word, rest.strip())
            except ConfigError as exc:
                raise ConfigError(f"line {number}: {exc.args[0]}", errno=exc.errno) from None

    def _command(self, word: str, rest: str) -> None:
        match word:
            case "add":
                self._add(parse_fault(rest))
            case "rm":
                self.plan.remove(rest)
            case "clear" if not rest:
                for striker in list(self.plan.strikers):
                    self.plan.remove(striker.name)
            case "":
                pass
            case _:
                hint = did_you_mean(word, ("add", "rm", "clear"))
                raise ConfigError(f"{word!r}: expected add FAULT, rm NAME or clear{hint}")

    def _add(self, fault: Fault) -> None:
        if len(self.plan.strikers) >= LIVE_MAX:
            raise ConfigError(f"{LIVE_MAX} faults are there, expected at most as many: remove some", errno=errno.ENOSPC)
        name = self.plan.add(fault)
        if len(self.show()) >= SHOW_MAX_BYTES - LIVE_MAX * 20:  # 20 digits of each counter to come
            self.plan.remove(name)
            raise ConfigError(f"the faults' lines would exceed {SHOW_MAX_BYTES} bytes: remove some", errno=errno.ENOSPC)
