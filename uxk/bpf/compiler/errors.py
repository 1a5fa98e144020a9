"""What can stand against compiling a model."""

from __future__ import annotations

from uxk.bpf.errors import BpfError


class CompileError(BpfError):
    """A model, a schema or a range from which no safe program can be made."""
