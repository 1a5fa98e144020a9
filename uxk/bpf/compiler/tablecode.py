"""Bytecode for nets whose weights are data: r6 walks through the map's value, a loop of known turns for wide layers.

Values given lie on the stack from its top, sums that are being made from its other end, in turns.  Weights are stored
with half of their range added, because the bounds of a product are known for numbers that are not negative: r9, and r8
for what comes out of a loop, are the sums of the values times that half, to be taken off.  r0 is the sum, r2 the
weight, r3 the value, r7 the turns left.
"""

from __future__ import annotations

from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.compiler.emitter import Emitter
from uxk.bpf.compiler.forms import Tabled
from uxk.bpf.compiler.tables import GENERATION_BYTES, SLOTS, WEIGHTS_MAP, Stage, packed, stages
from uxk.bpf.insn import FRAME, lddw

_TOTAL, _X, _T, _ROW, _TURNS, _LATER, _EXCESS = 0, 2, 3, 6, 7, 8, 9
_SIZES: Final = {1: i.B, 2: i.H, 4: i.W}


def tabled(code: Emitter, form: Tabled) -> None:
    """The whole program."""
    half = 8 * form.width_bytes - 1
    _active_area(code, len(packed(form)))
    code.constant(_EXCESS, 1 << form.ones[0])
    for slot, column in enumerate(form.columns):
        code.load(_X, slot)
        code.clamp(column.low, column.high)
        if column.shift:
            code.emit(i.ALU64 | (i.LSH if column.shift > 0 else i.RSH), _X, imm=abs(column.shift))
        code.emit(i.STX | i.DW | i.MEM, FRAME, _X, -8 * (1 + slot))
        code.emit(i.ALU64 | i.ADD | i.X, _EXCESS, _X)
    code.emit(i.ALU64 | i.LSH, _EXCESS, imm=half)
    places, layer = tuple(range(1, 1 + len(form.columns))), 0
    for number, stage in enumerate(stages(form.widths)):
        made = tuple(SLOTS - n if number % 2 == 0 else 1 + n for n in range(stage.made))
        walk = _Stage(code, form, stage, layer, places, made)
        (walk.loop if stage.through else walk.plain)()
        layer += 2 if stage.through else 1
        places = made
        if layer < len(form.layers):
            code.constant(_EXCESS, 1 << form.ones[layer])
            for place in made:
                code.emit(i.LDX | i.DW | i.MEM, _TOTAL, FRAME, -8 * place)
                _cut(code, form, layer - 1)
                code.emit(i.STX | i.DW | i.MEM, FRAME, _TOTAL, -8 * place)
                code.emit(i.ALU64 | i.ADD | i.X, _EXCESS, _TOTAL)
            code.emit(i.ALU64 | i.LSH, _EXCESS, imm=half)
    if len(places) == 1:
        code.emit(i.LDX | i.DW | i.MEM, _TOTAL, FRAME, -8 * places[0])
        if not form.values:
            code.add(_TOTAL, form.rounding)
            if form.shifts[-1]:
                code.emit(i.ALU64 | i.ARSH, _TOTAL, imm=form.shifts[-1])
    code.decide(form.values, places)
    code.emit(i.EXIT_INSN)


def _active_area(code: Emitter, area_bytes: int) -> None:
    """r6 = the area that the generation's lowest bit says."""
    code.slots(lddw(_ROW, WEIGHTS_MAP, i.IMM64_MAP_VALUE))
    code.emit(i.LDX | i.DW | i.MEM, _X, _ROW)
    code.emit(i.ALU64 | i.AND, _X, imm=1)
    code.emit(i.JMP | i.JEQ, _X, off=1)
    code.emit(i.ALU64 | i.ADD, _ROW, imm=area_bytes)
    code.emit(i.ALU64 | i.ADD, _ROW, imm=GENERATION_BYTES)


def _cut(code: Emitter, form: Tabled, layer: int) -> None:
    """r0 = the hidden value of a sum.  The mask changes none of the weights that the compiler has chosen."""
    code.cut(form.shifts[layer])
    code.emit(i.ALU64 | i.AND, _TOTAL, imm=(1 << form.ones[layer + 1]) - 1)


class _Stage:
    """One or two layers; ``places`` are the stack's slots of what is given, and of what is made."""

    def __init__(
        self, code: Emitter, form: Tabled, stage: Stage, layer: int, given: tuple[int, ...], made: tuple[int, ...]
    ) -> None:
        self._code, self._form, self._stage, self._layer = code, form, stage, layer
        self._given, self._made = given, made

    def plain(self) -> None:
        """Each sum of its own, written out."""
        row = len(self._given) + 1
        for n, place in enumerate(self._made):
            self._sum(n * row)
            self._code.emit(i.STX | i.DW | i.MEM, FRAME, _TOTAL, -8 * place)
        self._move(len(self._made) * row)

    def loop(self) -> None:
        """A turn for each value of the wide layer, which is added to the sums of the next with their weights."""
        code, row = self._code, len(self._given) + 1
        code.constant(_LATER, 1 << self._form.ones[self._layer + 1])
        for n, place in enumerate(self._made):
            self._weight(n)
            code.emit(i.ALU64 | i.LSH, _X, imm=self._form.ones[self._layer + 1])
            code.emit(i.STX | i.DW | i.MEM, FRAME, _X, -8 * place)
        self._move(len(self._made))
        code.constant(_TURNS, self._stage.through)
        start = code.at
        self._sum(0)
        _cut(code, self._form, self._layer)
        code.emit(i.ALU64 | i.ADD | i.X, _LATER, _TOTAL)
        for n, place in enumerate(self._made):
            self._weight(row + n)
            code.emit(i.ALU64 | i.MUL | i.X, _X, _TOTAL)
            code.emit(i.LDX | i.DW | i.MEM, _T, FRAME, -8 * place)
            code.emit(i.ALU64 | i.ADD | i.X, _T, _X)
            code.emit(i.STX | i.DW | i.MEM, FRAME, _T, -8 * place)
        self._move(row + len(self._made))
        code.emit(i.ALU64 | i.SUB, _TURNS, imm=1)
        code.emit(i.JMP | i.JNE, _TURNS, off=start - code.at - 1)
        code.emit(i.ALU64 | i.LSH, _LATER, imm=8 * self._form.width_bytes - 1)
        for place in self._made:
            code.emit(i.LDX | i.DW | i.MEM, _T, FRAME, -8 * place)
            code.emit(i.ALU64 | i.SUB | i.X, _T, _LATER)
            code.emit(i.STX | i.DW | i.MEM, FRAME, _T, -8 * place)

    def _sum(self, first: int) -> None:
        """r0 = the sum of the row whose first weight is so many on."""
        code, ones = self._code, self._form.ones[self._layer]
        self._weight(first + len(self._given))
        code.emit(i.ALU64 | i.MOV | i.X, _TOTAL, _X)
        code.emit(i.ALU64 | i.LSH, _TOTAL, imm=ones)
        code.emit(i.ALU64 | i.SUB | i.X, _TOTAL, _EXCESS)
        for n, place in enumerate(self._given):
            self._weight(first + n)
            code.emit(i.LDX | i.DW | i.MEM, _T, FRAME, -8 * place)
            code.emit(i.ALU64 | i.MUL | i.X, _X, _T)
            code.emit(i.ALU64 | i.ADD | i.X, _TOTAL, _X)

    def _weight(self, number: int) -> None:
        width_bytes = self._form.width_bytes
        self._code.emit(i.LDX | _SIZES[width_bytes] | i.MEM, _X, _ROW, number * width_bytes)

    def _move(self, weights: int) -> None:
        self._code.emit(i.ALU64 | i.ADD, _ROW, imm=weights * self._form.width_bytes)
