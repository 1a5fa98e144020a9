"""A verified program for whole arrays: as machine code by llvmlite (the extra ``fast``), or by its translation.

Both give what the interpreter gives for one row after the other: r0, the memory of the rows, the values of maps, and
where a run is stopped that uses its budget up.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.bpf.batch_ir import Source, Unsupported
from uxk.bpf.batch_jit import Code, missing
from uxk.bpf.counting import Count
from uxk.bpf.errors import BpfError, Fault
from uxk.bpf.interp import spent
from uxk.bpf.maps import ArrayMap, InstanceArrayMap
from uxk.bpf.program import Program

FIELD_BYTES: Final = 8
WORTH_INSTRUCTIONS: Final = 10_000_000
"""So many instructions, times rows, take Python longer than LLVM takes to make machine code quickly."""
_SIGNATURE: Final = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


class Stopped(Fault):
    """The run of a row that was stopped: ``row`` counts from 0."""

    def __init__(self, row: int, pc: int, reason: str) -> None:
        super().__init__(pc, f"{reason} (row {row})")
        self.row = row


class Outcomes(NamedTuple):
    """``verdicts``: r0 of each row, signed; 0 if it was stopped.  ``stopped``: the slot where it was, or -1."""

    verdicts: NDArray[np.int64]
    stopped: NDArray[np.int64]


class Batch:
    """``native``: True for machine code, False for the translation, None for machine code where there can be some.

    ``why``: why there is none; empty if there is.  With ``native=True`` that is raised: :class:`Unsupported`, which
    names the instruction, or ``BpfError`` without llvmlite.  ``quick``: as for :class:`~uxk.bpf.batch_jit.Code`.

    Machine code lives as long as this object; so must whatever calls ``address``.  Threads may share it if each has
    rows of its own: of a program without maps the runs let other threads go on, others keep them out.
    """

    def __init__(self, program: Program, *, native: bool | None = None, quick: bool = False) -> None:
        self.program = program
        self.bounded: Final = not Count(program.proof, program.budget, by_fields=False).needed
        """Whether no run can use the budget up."""
        self._code: Code | None = None
        self._stops: Sequence[int] = ()
        self._held: list[Any] = []
        self.why = "the translation was asked for" if native is False else missing() or self._unsafe()
        if not self.why:
            try:
                self._compile(quick)
            except Unsupported as exc:
                if native:
                    raise
                self.why = str(exc)
        elif native:
            raise BpfError(f"program {program.name!r}: no machine code: {self.why}")

    def _unsafe(self) -> str:
        """What machine code cannot look after, unlike Python."""
        memory, fields = self.program.spec.memory, self.program.spec.fields
        return (
            "the proof rests on bounds of fields that the program may write"
            if fields and memory and memory.writable
            else ""
        )

    @property
    def native(self) -> bool:
        """Whether it is machine code that runs."""
        return self._code is not None

    @property
    def address(self) -> int:
        """Of a C function ``int64 f(const int64 *row)``, which gives r0; 0 for what :meth:`outcomes` tells of.

        Whoever calls it sees to the size of the memory that the program was verified for.  Raises ``BpfError`` when
        there is no machine code.
        """
        if self._code is None:
            raise BpfError(f"program {self.program.name!r}: no machine code: {self.why}")
        return self._code.address("row")

    def many(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """r0 of each row.  Raises as :meth:`outcomes`, and :class:`Stopped` for the first row that was."""
        verdicts, codes, stops = self._run(rows)
        if codes is not None:
            row = int(np.argmax(codes > 0))
            raise Stopped(row, stops[codes[row]], spent(0, self.program.budget).reason)
        return verdicts

    def outcomes(self, rows: NDArray[Any]) -> Outcomes:
        """Runs the program on each row in turn: rows of int64 or of bytes (uint8), as long as its memory.

        What a program writes into its memory is in ``rows`` afterwards, unless the array is read-only.  Raises
        ``BpfError`` for another array, and for rows with fields outside of the bounds that the proof took for
        granted: those are not run.
        """
        verdicts, codes, stops = self._run(rows)
        stopped = np.full(len(verdicts), -1, np.int64) if codes is None else np.array(stops, np.int64)[codes]
        return Outcomes(verdicts, stopped)

    def _run(self, rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, Sequence[int]]:
        """r0, why rows were stopped (None: none was), and the slots that this stands for."""
        given = self._checked(rows)
        verdicts, codes = np.empty(len(given), np.int64), np.zeros(len(given), np.int64)
        stops: Sequence[int] = self._stops
        if self._code is None:
            stops = self._translated(given, verdicts, codes)
            bad = codes.any()
        else:
            places = (verdicts.ctypes.data, codes.ctypes.data)
            bad = self._many(given.ctypes.data, len(given), given.strides[0], *places)
        if not bad:
            return verdicts, None, stops
        if (codes < 0).any():
            row = int(np.argmax(codes < 0))
            raise self._outside(given, row, -1 - int(codes[row]))
        return verdicts, codes, stops

    # --- machine code ---

    def _compile(self, quick: bool) -> None:
        program = self.program
        addresses: dict[int, int] = {}
        for number, each in program.maps.items():
            if isinstance(each, ArrayMap) and not isinstance(each, InstanceArrayMap):
                view = (ctypes.c_char * len(each.data)).from_buffer(each.data)
                self._held.append(view)  # as long as it is there, the values stay where they are
                addresses[number] = ctypes.addressof(view)
        source = Source(
            program.proof, program.maps, addresses, program.machine.helpers, None if self.bounded else program.budget
        )
        self._code = Code(source.text, quick=quick)
        self._stops = (-1, *source.stops)
        kind = ctypes.PYFUNCTYPE if addresses else ctypes.CFUNCTYPE
        self._many = kind(*_SIGNATURE)(self._code.address("many"))

    # --- rows ---

    def _checked(self, rows: NDArray[Any]) -> NDArray[Any]:
        memory = self.program.spec.memory
        size_bytes = memory.size_bytes if memory else 0
        expected = f"an array of bytes (uint8) with {size_bytes} columns"
        if size_bytes % FIELD_BYTES == 0:
            expected = f"an array of int64 with {size_bytes // FIELD_BYTES} columns, or of uint8 with {size_bytes}"
        name = f"program {self.program.name!r}"
        if not isinstance(rows, np.ndarray):
            raise BpfError(f"{name}: {type(rows).__name__}; expected {expected}")
        if rows.ndim != 2 or rows.dtype not in (np.int64, np.uint8) or rows.shape[1] * rows.itemsize != size_bytes:
            raise BpfError(f"{name}: an array of {rows.dtype} of the shape {rows.shape}; expected {expected}")
        beside = rows.shape[1] < 2 or rows.strides[1] == rows.itemsize
        if memory is None or not memory.writable:
            return rows if beside else np.ascontiguousarray(rows)
        if not rows.flags.writeable:
            return rows.copy()
        if not beside:
            raise BpfError(
                f"{name}: columns {rows.strides[1]} bytes apart; expected rows whose columns lie side by side"
            )
        return rows

    def _outside(self, rows: NDArray[Any], row: int, offset: int) -> BpfError:
        bounds = self.program.spec.fields[offset]
        value = int.from_bytes(rows[row].tobytes()[offset : offset + FIELD_BYTES], "little", signed=True)
        return BpfError(
            f"program {self.program.name!r}: row {row}: {value} in field {offset // FIELD_BYTES}; it was verified for "
            f"{bounds}"
        )

    # --- the translation ---

    def _translated(self, rows: NDArray[Any], verdicts: NDArray[np.int64], codes: NDArray[np.int64]) -> list[int]:
        """As the machine code does it: fills both, and returns the slots that codes stand for."""
        program, memory = self.program, self.program.spec.memory
        self._find_outside(rows, codes)
        stops, reason = [-1], spent(0, program.budget).reason
        for number in np.flatnonzero(codes == 0).tolist():
            content = bytearray(rows[number].tobytes())
            try:
                verdicts[number] = program.run(content)
            except Fault as exc:
                if exc.reason != reason:
                    raise
                verdicts[number], codes[number] = 0, len(stops)
                stops.append(exc.pc)
            if memory is not None and memory.writable:
                rows[number] = np.frombuffer(content, rows.dtype)
        return stops

    def _find_outside(self, rows: NDArray[Any], codes: NDArray[np.int64]) -> None:
        """Marks rows with a field outside of its bounds; the first one counts."""
        if not self.program.spec.fields or not rows.size:
            return
        content = np.ascontiguousarray(rows).view(np.uint8)
        for offset, bounds in sorted(self.program.spec.fields.items(), reverse=True):
            field = np.ascontiguousarray(content[:, offset : offset + FIELD_BYTES]).view(np.int64)[:, 0]
            unsigned = field.view(np.uint64)
            outside = (field < bounds.smin) | (field > bounds.smax)
            outside |= (unsigned < np.uint64(bounds.umin)) | (unsigned > np.uint64(bounds.umax))
            codes[outside] = -1 - offset


def verdicts(program: Program, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """r0 of a model's program for rows of its features; slots that the rows lack hold 0.

    By machine code where it pays to make some, judged by the instructions that the verifier followed.  Raises as
    :meth:`Batch.many`.
    """
    memory = program.spec.memory
    slots = memory.size_bytes // FIELD_BYTES if memory else 0
    if rows.ndim == 2 and rows.shape[1] < slots:
        rows = np.pad(rows, ((0, 0), (0, slots - rows.shape[1])))
    pays = program.proof.looked_at * len(rows) >= WORTH_INSTRUCTIONS
    return Batch(program, native=None if pays else False, quick=True).many(rows)
