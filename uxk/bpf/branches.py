"""What a conditional jump tells: whether it is taken for sure, and what is known of both sides after it.

Models is_branch_taken and regs_refine_cond_op of kernel/bpf/verifier.c, on intervals.
"""

from __future__ import annotations

from itertools import product
from typing import Final, NamedTuple

from uxk.bpf import insn as i
from uxk.bpf.insn import M32, M64, s32
from uxk.bpf.values import S64_MAX, S64_MIN, Scalar, above, bounded, const, either, meet

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
        return _jset(M64 if bits == 64 else M32, a, b)
    if bits == 32:
        return _narrow(op, a, b), _narrow(OPPOSITE[op], a, b)
    return assume(op, a, b), assume(OPPOSITE[op], a, b)


def _narrow(op: int, a: Scalar, b: Scalar) -> Sides | None:
    """Both numbers, given that the comparison of their low halves holds; None if it cannot."""
    found: Sides | None = None
    unsigned = op in (i.JEQ, i.JNE, *_MIRROR)
    for left, right in product(_pieces(a, unsigned=unsigned), _pieces(b, unsigned=unsigned)):
        sides = assume(op, left.low, right.low)
        if sides is not None:
            pair = left.whole(sides[0]), right.whole(sides[1])
            found = pair if found is None else (either(found[0], pair[0]), either(found[1], pair[1]))
    return found


class _Piece(NamedTuple):
    """``low``: the low halves, read as 32-bit numbers, of a part of ``of``.

    ``distance``: from them to that part; None if they tell nothing of the numbers.
    """

    of: Scalar
    low: Scalar
    distance: int | None

    def whole(self, low: Scalar) -> Scalar:
        """The numbers with these low halves."""
        if self.distance is None:
            return self.of
        return meet(self.of, bounded(low.smin + self.distance, low.smax + self.distance)) or self.of


def _pieces(a: Scalar, *, unsigned: bool) -> list[_Piece]:
    """``a`` in parts over which the low half, read as a signed or an unsigned number, grows with it."""
    if a.known:
        return [_Piece(a, const(a.umin & M32 if unsigned else s32(a.umin)), None)]
    least, most = (0, M32) if unsigned else (-1 << 31, M32 >> 1)
    found: list[_Piece] = []
    if a.smin >= -1 << 31 and a.smax <= M32:
        for distance in (0, -1 << 32 if unsigned else 1 << 32):
            part = meet(a, bounded(least + distance, most + distance))
            if part is not None:
                found.append(_Piece(a, bounded(part.smin - distance, part.smax - distance), distance))
    return found or [_Piece(a, bounded(least, most), None)]


def _jset(mask: int, a: Scalar, b: Scalar) -> tuple[Sides | None, Sides | None]:
    """Where the jump is not taken, the bits of a known mask are zero."""
    if a.known and b.known:
        return ((a, b), None) if a.umin & b.umin & mask else (None, (a, b))
    if b.known and a.umax <= mask:
        clear = meet(a, above(0, mask & ~b.umin))
        return (a, b), (clear, b) if clear else None
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
    smin, smax, umin, umax = a[:4]
    if smin == b.smin:
        smin += 1
    if smax == b.smin:
        smax -= 1
    if umin == b.umin:
        umin += 1
    if umax == b.umin:
        umax -= 1
    return meet(Scalar(smin, smax, umin, umax), a)
