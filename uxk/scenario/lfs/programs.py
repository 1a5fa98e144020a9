"""A hand-written program as a selection: ``PLACEMENT/program:FILE``, without a kernel and without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from uxk.bpf import elf
from uxk.bpf.asm import assemble
from uxk.bpf.errors import BpfError
from uxk.bpf.program import Program
from uxk.errors import ConfigError
from uxk.subsystems.lfs.rows import SCHEMA, VERDICT

TEXT: Final = (".s", ".asm")
MARK: Final = "/program:"
"""Between a placement and a file."""
FILE_MAX_BYTES: Final = 1 << 20


def read_program(path: str) -> Program:
    """The program in a file: assembler text (``.s``, ``.asm``), an object of clang's, or the bytes themselves.

    :class:`ConfigError` for a file that cannot be read, and for what the verifier refuses with the features of
    :data:`uxk.subsystems.lfs.rows.SCHEMA`.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"policy: program {path!r}: {why}") from None
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(f"policy: program {path!r}: more than {FILE_MAX_BYTES} bytes")
    try:
        if elf.is_object(data):
            loaded = elf.load(data, name=path)
            if loaded.maps:
                raise ConfigError(f"policy: program {path!r}: has maps; expected one that only looks at its features")
            code = loaded.code
        else:
            code = assemble(data.decode()) if Path(path).suffix in TEXT else data
        return Program(code, SCHEMA.spec(VERDICT, trusted=True), helpers={}, name=Path(path).stem)
    except (BpfError, UnicodeDecodeError) as exc:
        names = ", ".join(SCHEMA.names)
        raise ConfigError(f"policy: program {path}: {exc}; r1 points to 64-bit numbers: {names}, 0") from None
