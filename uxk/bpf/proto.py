"""What a program is verified against: its arguments, maps, helpers and verdicts.

Helper and kfunc prototypes model ``struct bpf_func_proto`` of include/linux/bpf.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from uxk.bpf.insn import M64
from uxk.bpf.values import Scalar, Space

VERIFIED_INSNS_MAX: Final = 1_000_000
"""Instructions that the verifier looks at, all turns of all loops, before it gives up (as Linux does)."""


class Arg(Enum):
    """What an argument must be."""

    NUMBER = "a number"
    MAP = "a map"
    MAP_KEY = "a key of the map before it"
    MAP_VALUE = "a value of the map before it"
    READ = "bytes to read, their length in the next argument"
    WRITE = "bytes to fill, their length in the next argument"
    LENGTH = "the length of the bytes before it"
    OBJECT = "an object that was looked up"


class Ret(Enum):
    """What r0 is afterwards."""

    NUMBER = "a number"
    MAP_VALUE_OR_NULL = "a value of the map, or null"
    OBJECT_OR_NULL = "an object to release, or null"


class Proto(NamedTuple):
    """``maps``: kinds of maps that a MAP argument may be; empty for any.  ``releases``: gives its OBJECT back."""

    name: str
    args: tuple[Arg, ...] = ()
    ret: Ret = Ret.NUMBER
    maps: frozenset[str] = frozenset()
    releases: bool = False


class MapShape(NamedTuple):
    """What the verifier must know of a map.  ``direct``: its first value has an address that ``lddw`` may take.

    ``writable``: programs may change its values.
    """

    kind: str
    key_bytes: int
    value_bytes: int
    direct: bool = False
    writable: bool = True


class Spec(NamedTuple):
    """``memory``: what r1 points to (None: r1 is not set); r2 is its length, known.

    ``fields``: bounds of 64-bit loads from read-only memory, by offset.  ``verdict``: lowest and highest r0.
    """

    memory: Space | None = None
    length_known: bool = True
    fields: Mapping[int, Scalar] = {}
    maps: Mapping[int, MapShape] = {}
    helpers: Mapping[int, Proto] = {}
    kfuncs: Mapping[int, Proto] = {}
    arena: bool = False
    verdict: tuple[int, int] | None = None
    insns_max: int = VERIFIED_INSNS_MAX


def body(size_bytes: int, *, writable: bool = True) -> Spec:
    """The plain form: r1 = address of some bytes, r2 = how many, r0 = any number."""
    return Spec(memory=Space("memory", size_bytes, writable) if size_bytes else None)


def features(bounds: tuple[tuple[int, int], ...]) -> Spec:
    """A model's body: r1 = address of one signed 64-bit number for each of ``bounds``, which it cannot write."""
    fields = {
        8 * slot: Scalar(low, high, max(low, 0), high if low >= 0 else M64) for slot, (low, high) in enumerate(bounds)
    }
    return Spec(memory=Space("memory", 8 * len(bounds), writable=False), fields=fields)
