"""What the verifier knows of a register: a number within bounds, or a pointer into a region with its offset.

Intervals, as in Linux (kernel/bpf/verifier.c: scalar_min_max_*) and PREVAIL (PLDI 2019), without known bits.  Every
transfer is at most as exact as Linux's, so that nothing is taken for safe here that Linux cannot see: divisions,
remainders and negations are unknown, and so are left shifts that may lose bits.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, s64, signed

S64_MIN: Final = -(1 << 63)
S64_MAX: Final = (1 << 63) - 1


class Scalar(NamedTuple):
    """A number, bounded as signed and as unsigned.

    ``tied`` is not 0 where the number was copied: all copies carry the same, and what is learnt of one holds of all.
    """

    smin: int
    smax: int
    umin: int
    umax: int
    tied: int = 0

    @property
    def known(self) -> bool:
        """Whether there is one value only."""
        return self.umin == self.umax

    def __str__(self) -> str:
        if self.known:
            return str(self.smin)
        if self[:4] == UNKNOWN[:4]:
            return "any number"
        signed_tells = self.smin > S64_MIN or self.smax < S64_MAX
        return f"{self.smin}..{self.smax}" if signed_tells else f"{self.umin:#x}..{self.umax:#x}"


class Space(NamedTuple):
    """A region that pointers point into.  ``number`` tells frames, maps and references apart."""

    kind: str
    size_bytes: int
    writable: bool = True
    number: int = 0

    def __str__(self) -> str:
        plain = self.kind == "memory" or (self.kind == "stack" and not self.number)
        return self.kind if plain else f"{self.kind} {self.number}"


class Pointer(NamedTuple):
    """An address in ``space``, ``low`` to ``high`` bytes from its beginning (a stack's: from its end, so negative).

    ``null`` is not 0 while it may be the null pointer; all copies of one carry the same number.
    """

    space: Space
    low: int
    high: int
    null: int = 0

    def __str__(self) -> str:
        offset = f"{self.low:+d}" if self.low == self.high else f"+{self.low}..{self.high}"
        return f"{self.space}{offset}{' or null' if self.null else ''}"


class Handle(NamedTuple):
    """A map itself, as helpers take it."""

    number: int

    def __str__(self) -> str:
        return f"handle of map {self.number}"


Value: TypeAlias = "Scalar | Pointer | Handle | None"
"""None is what was never written, or is not the same on all paths."""

UNKNOWN: Final = Scalar(S64_MIN, S64_MAX, 0, M64)
SIZED: Final = {size: Scalar(0, (1 << 8 * size) - 1, 0, (1 << 8 * size) - 1) for size in (1, 2, 4)} | {8: UNKNOWN}
"""What a load of 1, 2, 4 or 8 bytes gives."""
SIGN_EXTENDED: Final = {size: (-(1 << (8 * size - 1)), (1 << (8 * size - 1)) - 1) for size in (1, 2, 4)}


def const(value: int) -> Scalar:
    """One number."""
    return Scalar(s64(value), s64(value), value & M64, value & M64)


def bounded(smin: int, smax: int) -> Scalar:
    """A number within signed bounds; unknown if they leave 64 bits."""
    if smin < S64_MIN or smax > S64_MAX:
        return UNKNOWN
    if smin >= 0:
        return Scalar(smin, smax, smin, smax)
    if smax < 0:
        return Scalar(smin, smax, smin & M64, smax & M64)
    return Scalar(smin, smax, 0, M64)


def above(umin: int, umax: int) -> Scalar:
    """A number within unsigned bounds below 2**64."""
    if umax <= S64_MAX or umin > S64_MAX:
        return Scalar(s64(umin), s64(umax), umin, umax)
    return Scalar(S64_MIN, S64_MAX, umin, umax)


def meet(a: Scalar, b: Scalar) -> Scalar | None:
    """What is in both; None if nothing can be."""
    smin, smax = max(a.smin, b.smin), min(a.smax, b.smax)
    umin, umax = max(a.umin, b.umin), min(a.umax, b.umax)
    if smin > smax or umin > umax:
        return None
    if smin >= 0 or smax < 0:
        umin, umax = max(umin, smin & M64), min(umax, smax & M64)
    if umax <= S64_MAX or umin > S64_MAX:
        smin, smax = max(smin, s64(umin)), min(smax, s64(umax))
    return Scalar(smin, smax, umin, umax) if smin <= smax and umin <= umax else None


def either(a: Scalar, b: Scalar) -> Scalar:
    """What is in one of both."""
    tied = a.tied if a.tied == b.tied else 0
    return Scalar(min(a.smin, b.smin), max(a.smax, b.smax), min(a.umin, b.umin), max(a.umax, b.umax), tied)


def join(a: Value, b: Value) -> Value:
    """What holds on both of two paths."""
    if a == b:
        return a
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        return either(a, b)
    if isinstance(a, Pointer) and isinstance(b, Pointer) and a.space == b.space and a.null == b.null and not a.null:
        if a.space.kind == "stack":
            return None
        return Pointer(a.space, min(a.low, b.low), max(a.high, b.high))
    return None


def widen(a: Value, b: Value) -> Value:
    """Like ``join``, but what grows is unknown at once, so that loops come to rest."""
    if a == b:
        return a
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        grown = either(a, b)
        return grown if grown[:4] == a[:4] else UNKNOWN
    joined = join(a, b)
    return joined if joined == a else None


def included(a: Value, b: Value) -> bool:
    """Whether everything that ``a`` may be, ``b`` may be."""
    return b is None or a == b or (a is not None and join(a, b) == b)


def compute(op: int, off: int, bits: int, a: Scalar, b: Scalar) -> Scalar:
    """An arithmetic instruction on numbers; the operands of 32-bit ones are cut first, the result zero-extended."""
    if bits == 32:
        a, b = _cut(a), _cut(b)
    if op in (i.DIV, i.MOD, i.NEG) or (op in (i.LSH, i.RSH, i.ARSH) and not (b.known and b.umin < bits)):
        return UNKNOWN  # of all 64 bits, even where the upper half becomes 0: Linux knows no better
    result = _compute(op, off, bits, a, b)
    return _cut(result) if bits == 32 else result


def _cut(a: Scalar) -> Scalar:
    """The low 32 bits."""
    if a.umax <= M32:
        return a
    if a.known:
        return const(a.umin & M32)
    if a.umin >> 32 == a.umax >> 32:
        return above(a.umin & M32, a.umax & M32)
    return SIZED[4]


def _compute(op: int, off: int, bits: int, a: Scalar, b: Scalar) -> Scalar:
    if op == i.MOV:
        return extended(b, off) if off else b
    if op == i.ADD:
        return _either(bounded(a.smin + b.smin, a.smax + b.smax), a.umin + b.umin, a.umax + b.umax)
    if op == i.SUB:
        return _either(bounded(a.smin - b.smax, a.smax - b.smin), a.umin - b.umax, a.umax - b.umin)
    if op == i.MUL:
        if a.known and b.known:
            return const(a.umin * b.umin)
        small = a.smin >= 0 and b.smin >= 0 and a.umax <= M32 and b.umax <= M32
        return above(a.umin * b.umin, a.umax * b.umax) if small else UNKNOWN
    if op in (i.AND, i.OR, i.XOR):
        return _bitwise(op, a, b)
    return _shift(op, bits, a, b.umin)


def _either(by_sign: Scalar, umin: int, umax: int) -> Scalar:
    """Signed and unsigned bounds of a sum, each of which may have overflowed."""
    if umin < 0 or umax > M64:
        return by_sign
    return meet(by_sign, above(umin, umax)) or UNKNOWN


def _bitwise(op: int, a: Scalar, b: Scalar) -> Scalar:
    if a.known and b.known:
        return const(a.umin & b.umin if op == i.AND else a.umin | b.umin if op == i.OR else a.umin ^ b.umin)
    if op == i.AND:
        return above(0, min(a.umax, b.umax))
    top = (1 << max(a.umax.bit_length(), b.umax.bit_length())) - 1
    return above(max(a.umin, b.umin) if op == i.OR else 0, top)


def _shift(op: int, bits: int, a: Scalar, count: int) -> Scalar:
    if op == i.RSH:
        return above(a.umin >> count, a.umax >> count)
    if op == i.LSH:
        return const(a.umin << count) if a.known else _lsh(a, count)
    if bits == 64:
        return bounded(a.smin >> count, a.smax >> count)
    if a.known:
        return const(signed(a.umin, 32) >> count)
    return bounded(a.smin >> count, a.smax >> count) if a.umax < 1 << 31 else UNKNOWN


def _lsh(a: Scalar, count: int) -> Scalar:
    return bounded(a.smin << count, a.smax << count) if a.smin >= 0 and a.smax << count <= S64_MAX else UNKNOWN


def extended(a: Scalar, bits: int) -> Scalar:
    """The low ``bits`` bits with their sign."""
    if a.known:
        return const(signed(a.umin, bits))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return a if low <= a.smin and a.smax <= high else bounded(low, high)
