"""What a conditional jump tells: whether it is taken for sure, and what is known of both sides after it.

Models is_branch_taken and regs_refine_cond_op of kernel/bpf/verifier.c, on intervals.
"""

from __future__ import annotations

from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, s32
from uxk.bpf.values import S64_MAX, S64_MIN, Scalar, above, bounded, const, meet

OPPOSITE: Final = {
    i.JEQ: i.JNE, i.JNE: i.JEQ, i.JGT: i.JLE, i.JLE: i.JGT, i.JGE: i.JLT, i.JLT: i.JGE,
    i.JSGT: i.JSLE, i.JSLE: i.JSGT, i.JSGE: i.JSLT, i.JSLT: i.JSGE,
}  # fmt: skip
_MIRROR: Final = {i.JGT: i.JLT, i.JLT: i.JGT, i.JGE: i.JLE, i.JLE: i.JGE}
_MIRROR_SIGNED: Final = {i.JSGT: i.JSLT, i.JSLT: i.JSGT, i.JSGE: i.JSLE, i.JSLE: i.JSGE}
Sides = tuple[Scalar, Scalar]


def outcomes(op: int, bits: int, a: Scalar, b: Scalar) -> tuple[Sides | None, Sides | None]:
    """(left, right) where the jump is taken, and where it is not; None where that cannot be."""
    if op == i.JSET:
        return _jset(bits, a, b)
    if bits == 32:
        a32, b32 = _narrow(op, a), _narrow(op, b)
        if a32 is None or b32 is None:
            return _halves(op, a, b)
        return _kept(a, b, a32, b32, assume(op, a32, b32)), _kept(a, b, a32, b32, assume(OPPOSITE[op], a32, b32))
    return assume(op, a, b), assume(OPPOSITE[op], a, b)


def _narrow(op: int, a: Scalar) -> Scalar | None:
    """A number that compares in 64 bits as the low half of this one does in 32; None if there is none."""
    unsigned = op in (i.JEQ, i.JNE, i.JGT, i.JGE, i.JLT, i.JLE)
    if a.umax <= (M32 if unsigned else M32 >> 1):
        return a
    if a.known:
        return const(a.umin & M32 if unsigned else s32(a.umin))
    return None


def _kept(a: Scalar, b: Scalar, a32: Scalar, b32: Scalar, sides: Sides | None) -> Sides | None:
    """What was learnt of the numbers themselves, not of stand-ins for them."""
    return sides and (sides[0] if a32 is a else a, sides[1] if b32 is b else b)


def _halves(op: int, a: Scalar, b: Scalar) -> tuple[Sides | None, Sides | None]:
    """Low halves of numbers that have more: decided only between known ones, and nothing is learnt."""
    if not (a.known and b.known):
        return (a, b), (a, b)
    from uxk.bpf.alu import holds

    return ((a, b), None) if holds(i.JMP32 | op, a.umin, b.umin) else (None, (a, b))


def _jset(bits: int, a: Scalar, b: Scalar) -> tuple[Sides | None, Sides | None]:
    mask = M64 if bits == 64 else M32
    if a.known and b.known:
        return ((a, b), None) if a.umin & b.umin & mask else (None, (a, b))
    return (a, b), (a, b)


def assume(op: int, a: Scalar, b: Scalar) -> Sides | None:
    """Both numbers, given that the comparison of all 64 bits holds; None if it cannot."""
    if op == i.JEQ:
        both = meet(a, b)
        return (both, both) if both else None
    if op == i.JNE:
        left, right = _without(a, b), _without(b, a)
        return (left, right) if left and right else None
    if op in _MIRROR:
        left, right = meet(a, _unsigned(op, b)), meet(b, _unsigned(_MIRROR[op], a))
    else:
        left, right = meet(a, _signed(op, b)), meet(b, _signed(_MIRROR_SIGNED[op], a))
    return (left, right) if left and right else None


_NOTHING: Final = Scalar(1, 0, 1, 0)


def _unsigned(op: int, b: Scalar) -> Scalar:
    low, high = {
        i.JGT: (b.umin + 1, M64), i.JGE: (b.umin, M64), i.JLT: (0, b.umax - 1), i.JLE: (0, b.umax),
    }[op]  # fmt: skip
    return above(low, high) if 0 <= low <= high <= M64 else _NOTHING


def _signed(op: int, b: Scalar) -> Scalar:
    low, high = {
        i.JSGT: (b.smin + 1, S64_MAX), i.JSGE: (b.smin, S64_MAX), i.JSLT: (S64_MIN, b.smax - 1),
        i.JSLE: (S64_MIN, b.smax),
    }[op]  # fmt: skip
    return bounded(low, high) if S64_MIN <= low <= high <= S64_MAX else _NOTHING


def _without(a: Scalar, b: Scalar) -> Scalar | None:
    """``a`` without the one number that ``b`` is, if it is one and at an end of ``a``."""
    if not b.known:
        return a
    if a.known:
        return None if a.umin == b.umin else a
    smin, smax, umin, umax = a
    if smin == b.smin:
        smin += 1
    if smax == b.smin:
        smax -= 1
    if umin == b.umin:
        umin += 1
    if umax == b.umin:
        umax -= 1
    return meet(Scalar(smin, smax, umin, umax), a)
