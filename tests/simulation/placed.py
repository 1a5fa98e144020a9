"""Runs a Python file with every module in a placement, and prints the event hash of every kernel that it boots.

``python tests/simulation/placed.py task|process FILE [ARGUMENT ...]``
"""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from uxk.kernel.agent import KernelAgent
from uxk.kernel.catalog import ExtensionClass
from uxk.kernel.kernel import Kernel
from uxk.kernel.loader import Loader


def main(placement: str, file: str, arguments: list[str]) -> None:
    """Runs the file as a script; what it prints is not shown."""
    kernels: list[Kernel] = []
    load, init = Loader.load, Kernel.__init__

    async def placed(self: Loader, cls: ExtensionClass, params: Mapping[str, object], *, instance: str) -> KernelAgent:
        return await load(self, cls, {"placement": placement, **params}, instance=instance)

    def noted(self: Kernel, **settings: Any) -> None:
        init(self, **settings)
        kernels.append(self)

    Loader.load, Kernel.__init__ = placed, noted  # type: ignore[method-assign,assignment]
    sys.argv = [file, *arguments]
    with redirect_stdout(io.StringIO()):
        runpy.run_path(file, run_name="__main__")
    for kernel in kernels:
        print(kernel.event_hash(), kernel.machine.turns)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
