"""Machine code of LLVM's text, by llvmlite (the extra ``fast``).

A program has an engine of its own, so that its code goes with it; llvmlite puts a lock around all that it does.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from typing import Any


def missing() -> str:
    """Why there can be no machine code here; empty if there can."""
    if sys.byteorder != "little":
        return "numbers of this machine are big-endian"
    return "" if find_spec("llvmlite") else "llvmlite is not installed (the extra `fast`)"


@cache
def _binding() -> Any:
    import llvmlite.binding as llvm  # type: ignore[import-not-found,import-untyped,unused-ignore]

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


class Code:
    """Compiled functions, for as long as it lives.

    ``quick``: LLVM makes the code a fifth as long, and the code takes up to three times as long.
    """

    def __init__(self, text: str, *, quick: bool = False) -> None:
        llvm, level = _binding(), 0 if quick else 1
        module = llvm.parse_assembly(text)
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=level,
            codemodel="jitdefault", jit=True,
        )  # fmt: skip
        if not quick:
            builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=level))
            builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function begins."""
        return int(self._engine.get_function_address(name))
