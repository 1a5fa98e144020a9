"""What can be wrong with a program: its text, its proof, or its run."""

from __future__ import annotations

from uxk.errors import UsageError, UxkError


class BpfError(UsageError):
    """A program, a text or an object that is malformed."""


class AssemblyError(BpfError):
    """A line that is no instruction; ``line`` and ``column`` count from 1 (column 0: the whole line)."""

    def __init__(self, line: int, message: str, column: int = 0) -> None:
        super().__init__(f"line {line}{f', column {column}' if column else ''}: {message}")
        self.line, self.column = line, column


class VerifierError(BpfError):
    """A program that cannot be shown to be safe.  ``pc`` is the slot, ``registers`` what was known there."""

    def __init__(self, pc: int, message: str, insn: str = "", registers: str = "") -> None:
        parts = [
            f"insn {pc}",
            f": {insn}" if insn else "",
            f": {message}",
            f"; known there: {registers}" if registers else "",
        ]
        super().__init__("".join(parts))
        self.pc = pc
        self.reason = message
        self.registers = registers


class Fault(UxkError):
    """A run that was stopped: ``pc`` is the slot, ``reason`` what went wrong there."""

    def __init__(self, pc: int, reason: str) -> None:
        super().__init__(f"insn {pc}: {reason}")
        self.pc = pc
        self.reason = reason
