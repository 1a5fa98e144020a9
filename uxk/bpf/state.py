"""What the verifier knows at one place: the registers, and the stacks of the frames that are open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.values import SIZED, Handle, Pointer, Scalar, Value, included, join, widen

MIXED: Final = Handle(-1)
"""What lies in a slot that holds a pointer on some paths only: it counts as one, but nobody may read it."""


def unset(register: int) -> str:
    """Why a register without a value may not be read."""
    why = "not written on every path, gone after a call, or not the same kind of thing on all paths"
    return f"reads r{register}, which holds nothing here: {why}"


class Depth:
    """How much of its stack a function uses, over all paths: whoever uses it, a function that it calls included."""

    __slots__ = ("size_bytes",)

    def __init__(self) -> None:
        self.size_bytes = 0

    def reach(self, off: int) -> None:
        """Something is done at this offset from the frame pointer."""
        self.size_bytes = max(self.size_bytes, -off)


class Frame:
    """The stack of one function: bytes that were written, and whole values that lie in 8 aligned bytes.

    Offsets are from the frame pointer, so -512 to -1.  All copies share their ``depth``.
    """

    __slots__ = ("depth", "slots", "written")

    def __init__(self, depth: Depth, written: int = 0, slots: dict[int, Value] | None = None) -> None:
        self.depth, self.written = depth, written
        """Bit n: the byte at -1 - n."""
        self.slots = slots or {}

    def copy(self) -> Frame:
        """An independent copy."""
        return Frame(self.depth, self.written, dict(self.slots))

    def write(self, off: int, size_bytes: int, value: Value) -> None:
        """Marks bytes as written; all of an aligned slot keeps what it is."""
        self.written |= bits(off, size_bytes)
        slot = off & ~7
        if size_bytes == 8:
            self.slots[off] = value
        else:
            self.slots.pop(slot, None)

    def fill(self, off: int, least: int, most: int) -> None:
        """A helper writes from ``off`` on, ``least`` to ``most`` bytes."""
        if least:
            self.written |= bits(off, least)
        for slot in range(off & ~7, off + most, 8):
            self.slots.pop(slot, None)

    def spoil(self, off: int) -> None:
        """Makes a slot one that may not be read, nor be written in part."""
        self.slots[off] = MIXED
        self.written &= ~bits(off, 8)

    def holds_pointer(self, off: int) -> bool:
        """Whether a pointer, or a map, lies in the slot around ``off``."""
        held = self.slots.get(off & ~7)
        return held is not None and not isinstance(held, Scalar)

    def read(self, off: int, size_bytes: int) -> Value:
        """What lies there; None if a byte of it was never written."""
        if bits(off, size_bytes) & ~self.written:
            return None
        held = self.slots.get(off) if size_bytes == 8 else None
        return held if held is not None else SIZED[size_bytes]


def bits(off: int, size_bytes: int) -> int:
    """The bits of ``Frame.written`` for some bytes."""
    return ((1 << size_bytes) - 1) << (-off - size_bytes)


class State:
    """``regs``: r0 to r10.  ``frames``: the stack of the function that runs, last, and of its callers.

    ``references``: what was acquired and not yet released.  ``spent``: ``may_goto`` goes on no more in this function.
    """

    __slots__ = ("frames", "references", "regs", "spent")

    def __init__(
        self, regs: list[Value], frames: list[Frame], references: frozenset[int] = frozenset(), *, spent: bool = False
    ) -> None:
        self.regs, self.frames, self.references, self.spent = regs, frames, references, spent

    def copy(self) -> State:
        """An independent copy."""
        return State(self.regs.copy(), [frame.copy() for frame in self.frames], self.references, spent=self.spent)

    def merge(self, other: State, *, widening: bool = False) -> State:
        """What holds on both paths; ``references`` must be equal."""
        combine = widen if widening else join
        regs = [combine(a, b) for a, b in zip(self.regs, other.regs, strict=True)]
        frames = [_merged(a, b, widening) for a, b in zip(self.frames, other.frames, strict=True)]
        return State(regs, frames, self.references, spent=self.spent)

    def agrees(self, other: State) -> bool:
        """Whether a merge loses nothing but bounds: no register or slot is an address here and something else there."""
        mine, others = self.frames, other.frames
        return all(_agree(a, b) for a, b in zip(self.regs, other.regs, strict=True)) and all(
            _agree(value, b.slots.get(off)) for a, b in zip(mine, others, strict=True) for off, value in a.slots.items()
        )

    def within(self, other: State) -> bool:
        """Whether ``other`` allows for all that this state may be."""
        return (
            self.references == other.references
            and all(included(a, b) for a, b in zip(self.regs, other.regs, strict=True))
            and all(_frame_within(a, b) for a, b in zip(self.frames, other.frames, strict=True))
        )

    def resolve_null(self, number: int, *, null: bool) -> None:
        """Turns all copies of a pointer that may be null into 0, or into one that is not."""
        for index, value in enumerate(self.regs):
            self.regs[index] = _resolved(value, number, null)
        for frame in self.frames:
            for off, value in frame.slots.items():
                frame.slots[off] = _resolved(value, number, null)
        if null:
            self.references -= {number}

    def tie(self, register: int, fresh: Callable[[], int]) -> Value:
        """What is in a register, as it is copied: from now on what is learnt of one holds of the other, too."""
        value = self.regs[register]
        if isinstance(value, Scalar) and not value.tied and not value.known:
            value = self.regs[register] = value._replace(tied=fresh())
        return value

    def learn(self, register: int, value: Scalar) -> None:
        """Narrows the number in a register down, and its copies."""
        before = self.regs[register]
        if isinstance(before, Scalar) and before.tied:
            tied, value = before.tied, value._replace(tied=before.tied)
            self.regs = [value if isinstance(v, Scalar) and v.tied == tied else v for v in self.regs]
            for frame in self.frames:
                for off, v in frame.slots.items():
                    if isinstance(v, Scalar) and v.tied == tied:
                        frame.slots[off] = value
        self.regs[register] = value

    def untied(self) -> object:
        """All of it, whichever numbers are copies of which."""
        frames = [(frame.written, {off: _untied(v) for off, v in frame.slots.items()}) for frame in self.frames]
        return [_untied(v) for v in self.regs], frames, self.references, self.spent

    def forget(self, number: int) -> None:
        """Makes all copies of a released reference unusable."""
        self.references -= {number}
        self.regs = [None if _refers(value, number) else value for value in self.regs]
        for frame in self.frames:
            for off in [off for off, value in frame.slots.items() if _refers(value, number)]:
                frame.spoil(off)

    def __str__(self) -> str:
        known = [f"r{n}={value}" for n, value in enumerate(self.regs[: i.FRAME]) if value is not None]
        return " ".join(known) or "nothing"


def _agree(a: Value, b: Value) -> bool:
    return a is b or a is None or b is None or join(a, b) is not None


def _untied(value: Value) -> Value:
    return value._replace(tied=0) if isinstance(value, Scalar) else value


def _resolved(value: Value, number: int, null: bool) -> Value:
    if not isinstance(value, Pointer) or value.null != number:
        return value
    return Scalar(0, 0, 0, 0) if null else value._replace(null=0)


def _refers(value: Value, number: int) -> bool:
    return isinstance(value, Pointer) and value.space.kind == "object" and value.space.number == number


def _merged(a: Frame, b: Frame, widening: bool) -> Frame:
    if a.written == b.written and a.slots == b.slots:
        return a.copy()
    combine = widen if widening else join
    merged = Frame(a.depth, a.written & b.written)
    for off in a.slots.keys() | b.slots.keys():
        both = off in a.slots and off in b.slots
        value = combine(a.slots[off], b.slots[off]) if both else None
        if value is not None:
            merged.slots[off] = value
        elif a.holds_pointer(off) or b.holds_pointer(off):
            merged.spoil(off)
    return merged


def _frame_within(a: Frame, b: Frame) -> bool:
    if b.written & ~a.written:
        return False
    for off, value in b.slots.items():
        if value is not MIXED and (off not in a.slots or not included(a.slots[off], value)):
            return False
    # A slot that b knows only as written bytes must not hold a pointer in a.
    return not any(a.holds_pointer(off) and off not in b.slots and b.written & bits(off, 8) for off in a.slots)
