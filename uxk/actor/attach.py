"""Runs an extension in Python as if it were a program in another language: ``python3 -m uxk.actor.attach FILE``.

For the ``exec`` of a TOML manifest.  The kernel knows the module by that file, which is data, and its process never
imports the module; this one is confined before it does, as every program that a TOML file names.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

if __name__ == "__main__":  # packages ask where libraries lie, and that starts a compiler, which is denied here
    ctypes.util.find_library = lambda name: None

from uxk.actor import wire
from uxk.actor.actor import Output
from uxk.actor.child import Child, converse
from uxk.actor.launch import VARIABLE
from uxk.actor.link import Link
from uxk.errors import ModuleError
from uxk.module import Extension

MODULE: Final = "uxk_attached"
"""Name under which the file is imported."""


class Attached(Child):
    """The host process of the extension in one file."""

    def __init__(self, link: Link[wire.FromKernel], file: str) -> None:
        super().__init__(link)
        self._file = file

    def _confine(self, start: wire.Start) -> None:
        """It is confined since before this interpreter began."""

    def _answer(self, output: Output, began_ns: int) -> None:
        """Unlike of a module that it imports, the kernel does not know of this one whether it has tasks."""
        if self._actor is not None and self._actor.runs and self._start.held:
            self._link.send_all(wire.Dirty())
        super()._answer(output, began_ns)

    def _class(self, start: wire.Start) -> type[Extension[Any]]:
        return only_extension(self._file)


def only_extension(file: str) -> type[Extension[Any]]:
    """The extension that a Python file defines.  ModuleError if there is not exactly one."""
    path = os.path.abspath(file)
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ModuleError(f"{file!r}: expected a Python file")
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)  # msgspec resolves annotations through it
    spec.loader.exec_module(module)
    found = [
        each for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Extension) and each.__module__ == MODULE
    ]  # fmt: skip
    if len(found) != 1:
        raise ModuleError(f"{file!r}: {len(found)} extensions, expected one")
    return found[0]


def main(argv: Sequence[str]) -> int:
    """``FILE``; the connection is where the environment says."""
    if len(argv) != 1 or not os.environ.get(VARIABLE, "").isdecimal():
        print("expected FILE, and to be started by a kernel: exec = ['python3', '-m', 'uxk.actor.attach', FILE]")
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's to act on
    link: Link[wire.FromKernel] = Link(socket.socket(fileno=int(os.environ[VARIABLE])), wire.FromKernel)
    return converse(Attached(link, argv[0]))


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
