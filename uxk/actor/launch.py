"""Turns into a program in another language: ``python -m uxk.actor.launch`` confines this process and executes it.

The program finds the number of its connection to the kernel in the environment, as ``UXK_FD``; limits and filters
stay in force, as Linux keeps them from one program to the next.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from uxk.actor import sandbox
from uxk.uapi.manifest import Sandbox

VARIABLE: Final = "UXK_FD"
"""Name of the environment variable."""
_NOT_EXECUTED: Final = 127
"""Exit status, as of a shell."""


def main(argv: Sequence[str]) -> int:
    """``DESCRIPTOR PARENT SANDBOX MEMORY FOLDER PROGRAM ARGUMENT...``; returns only if that fails.

    SANDBOX is JSON, MEMORY the bytes that may be mapped, FOLDER where the program starts and may read.
    """
    descriptor, parent, rules, mapped_bytes, folder, *command = argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's to act on
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python's own choice is nobody else's
    sandbox.die_with_parent(int(parent))
    sandbox.close_descriptors(int(descriptor))
    try:
        os.chdir(folder)
        confined = msgspec.json.decode(rules, type=Sandbox)
        sandbox.enter(confined, int(mapped_bytes), [folder, os.path.dirname(command[0])], execute=True)
        os.execve(command[0], command, {**os.environ, VARIABLE: descriptor})
    except OSError as exc:
        print(f"{command[0]}: {exc.strerror}", file=sys.stderr, flush=True)
        return _NOT_EXECUTED


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
