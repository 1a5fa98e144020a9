"""A verified program as both engines call it: an address of ``int64 f(int64 *row)``.

Machine code where a compiler is there and has all that the program uses; else a call back into Python, which computes
the same.  Without numba the address is a number that stands for a Python function.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import numpy as np

from uxk.bpf.batch import Batch
from uxk.bpf.program import Program
from uxk.bpf.values import S64_MIN
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.arrays import Ints
from uxk.subsystems.lfs.fast.jit import PLAIN, is_native
from uxk.subsystems.lfs.fast.volume import Volume, registers

_ROW: Final = ctypes.POINTER(ctypes.c_int64)
_FUNCTION: Final = ctypes.CFUNCTYPE(ctypes.c_int64, _ROW)
_NUMBERS: Final = count(1)


class Scorer:
    """``decide`` scores the words of a row; None is a fault, after which nobody asks it again.

    ``pure``: asking changes nothing, and leaves no trace.  It lives as long as volumes have its address.
    """

    def __init__(
        self, decide: Callable[[tuple[int, ...]], int | None], *, pure: bool = True, native: Any = None
    ) -> None:
        self.decide, self.pure = decide, pure
        self.is_native = native is not None
        """Whether it runs as machine code."""
        self._native: Any = native
        self._callback: Any = None
        self._users: list[Ints] = []
        if native is not None:
            self.address = int(native.address)
        elif is_native():
            self._callback = _FUNCTION(self._called)
            self.address = ctypes.cast(self._callback, ctypes.c_void_p).value or 0
        else:
            self.address = next(_NUMBERS)
            PLAIN[self.address] = _weakly(self)
            weakref.finalize(self, PLAIN.pop, self.address)

    def _called(self, row: Sequence[int]) -> int:
        score = self.decide(tuple(int(row[word]) for word in range(c.ROW_WORDS)))
        if score is not None:
            return score
        for reg in self._users:
            reg[c.PROGRAM_AT] = 0
        return S64_MIN

    def serve(self, volume: Volume, pool: int = 0) -> None:
        """A pool whose selection is ``program`` asks it from now on."""
        reg = registers(volume, pool)
        reg[c.PROGRAM_AT], reg[c.PROGRAM_PURE] = self.address, int(self.pure)
        self._users.append(reg)

    def leave(self, volume: Volume, pool: int = 0) -> None:
        """A pool asks nobody any more."""
        reg = registers(volume, pool)
        reg[c.PROGRAM_AT] = 0
        self._users = [each for each in self._users if not np.shares_memory(each, reg)]

    def scores(self, rows: Ints) -> list[int | None]:
        """Of rows of ROW_WORDS words, as the engines get them."""
        if self.is_native:
            return list(map(int, self._native.many(rows)))
        return [self.decide(tuple(row)) for row in rows.tolist()]


def _weakly(scorer: Scorer) -> Callable[[Any], int]:
    mine = weakref.ref(scorer)

    def called(row: Any) -> int:
        found = mine()
        assert found is not None
        return found._called(row)

    return called


def scorer_of(program: Program, decide: Callable[[tuple[int, ...]], int | None] | None = None) -> Scorer:
    """Machine code if there can be, of a program that only looks at its row; else ``decide``, or its translation."""
    if program.translation.by_fields:
        return Scorer(decide or program.translation.function, native=native_of(program))
    return Scorer(decide or (lambda fields: program.decide(*fields)), pure=False)


def native_of(program: Program) -> Any:
    """The batch backend's object for a program; None if it cannot, or numba does not call addresses here."""
    if not is_native():
        return None
    made = Batch(program, quick=True)
    return made if made.native and made.bounded else None
