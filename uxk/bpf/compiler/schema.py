"""What a model is asked about: features with their ranges, each in a slot of 64 bits; the last slot is always zero.

The zero is one that Linux's verifier does not know: sums that begin with it are unknown on every path, so the paths
through a forest are found equal where they meet, instead of being followed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.proto import Spec, features
from uxk.bpf.values import S64_MAX, S64_MIN
from uxk.core.suggest import did_you_mean

VALUE_MAX: Final = 1 << 61
"""Largest magnitude of a feature: the difference of two of them stays within 64 bits."""
FEATURES_MAX: Final = 1 << 10


class Feature(NamedTuple):
    """A whole number from ``low`` to ``high``; ``unit`` is for people."""

    name: str
    low: int
    high: int
    unit: str = ""


class Schema:
    """Features in the order of their slots.  ``CompileError`` for ranges that are none, and names given twice."""

    def __init__(self, given: Sequence[Feature]) -> None:
        self.features = tuple(given)
        if not 0 < len(self.features) <= FEATURES_MAX:
            raise CompileError(f"schema: {len(self.features)} features; expected 1 to {FEATURES_MAX}")
        self.slots: Mapping[str, int] = {each.name: slot for slot, each in enumerate(self.features)}
        if len(self.slots) < len(self.features):
            names = [each.name for each in self.features]
            raise CompileError(f"schema: {next(n for n in names if names.count(n) > 1)!r} is there twice")
        for each in self.features:
            if not (isinstance(each.name, str) and isinstance(each.low, int) and isinstance(each.high, int)):
                raise CompileError(f"schema: {tuple(each)!r}; expected a name, and two whole numbers")
            if not -VALUE_MAX <= each.low <= each.high <= VALUE_MAX:
                raise CompileError(
                    f"schema: {each.name!r} is {each.low}..{each.high}; expected a low, then a high, within +-2**61"
                )

    def __len__(self) -> int:
        return len(self.features)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.features == other.features

    def __hash__(self) -> int:
        return hash(self.features)

    @property
    def spare(self) -> int:
        """The slot with the zero."""
        return len(self.features)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names in the order of their slots."""
        return tuple(each.name for each in self.features)

    def slot(self, name: object) -> int:
        """The slot of a feature that a model names.  Raises ``CompileError`` if the schema has none."""
        found = self.slots.get(str(name))
        if found is None:
            there = ", ".join(self.names)
            raise CompileError(
                f"the model asks for {name!r}, which the schema has not{did_you_mean(str(name), self.names)}; "
                f"there are {there}"
            )
        return found

    def clamped(self, values: Sequence[int]) -> tuple[int, ...]:
        """Each number brought into its range: what every compiled model makes of numbers that are outside."""
        return tuple(min(max(v, f.low), f.high) for v, f in zip(values, self.features, strict=True))

    def pack(self, values: Sequence[int]) -> bytes:
        """The memory that r1 points to: the features and the zero, 8 bytes each."""
        return b"".join(int(value).to_bytes(8, "little", signed=True) for value in (*values, 0))

    def spec(self, verdict: tuple[int, int] | None = None, *, trusted: bool = False) -> Spec:
        """What a body is verified against.

        ``trusted``: whoever fills the slots keeps to the ranges, so that what brings numbers into them falls away.
        """
        ranges = [(f.low, f.high) if trusted else (S64_MIN, S64_MAX) for f in self.features]
        return features((*ranges, (0, 0)))._replace(verdict=verdict)

    def plain(self) -> list[dict[str, object]]:
        """For JSON: ``name``, ``low``, ``high``, ``unit`` and ``slot`` of each feature."""
        return [{**each._asdict(), "slot": slot} for slot, each in enumerate(self.features)]


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    low: int
    high: int
    unit: str = ""
    slot: int | None = None


def schema_from(data: bytes | str, where: str = "schema") -> Schema:
    """A schema from JSON: a list of objects with ``name``, ``low``, ``high``, and perhaps ``unit`` and ``slot``."""
    try:
        rows = msgspec.json.decode(data, type=list[_Plain])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CompileError(f"{where}: {exc}; expected a list of objects with name, low and high") from None
    for place, row in enumerate(rows):
        if row.slot not in (None, place):
            raise CompileError(f"{where}: {row.name!r} has slot {row.slot}, but is number {place}")
    return Schema([Feature(row.name, row.low, row.high, row.unit) for row in rows])


def read_schema(path: str | Path) -> Schema:
    """A schema from a JSON file."""
    return schema_from(Path(path).read_bytes(), str(path))
