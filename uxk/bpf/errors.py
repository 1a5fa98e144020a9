"""What can be wrong with a program: its text, its proof, or its run."""

from __future__ import annotations

from uxk.errors import UsageError, UxkError


class BpfError(UsageError):
    """A program, a text or an object that is malformed."""


class AssemblyError(BpfError):
    """A line that is no instruction; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


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
