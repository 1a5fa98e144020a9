"""Whether the running kernel loads programs and comes back.

It need not: on Linux 6.18, several loaders at once and a thousand programs freed in a short time have been seen to
block every later load for good (``bpf_prog_pack_alloc``), and a process in there cannot be killed.  So a process of its
own tries, and is given up on.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

PATIENCE_S = 30
TRIVIAL = "b7000000000000009500000000000000 -\n"
"""r0 = 0; exit."""
_given_up: list[Popen[str]] = []


@cache
def why_not() -> str:
    """Empty if programs can be loaded, as root or strict; else what to say."""
    judge = Path(__file__).with_name("linux_judge.py")
    child = Popen([sys.executable, judge, "--root"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
    try:
        said, _ = child.communicate(TRIVIAL, timeout=PATIENCE_S)
    except TimeoutExpired:
        child.kill()
        child.returncode = -9  # nobody waits for it
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        _given_up.append(child)
        return f"a program that was to be loaded has not come back in {PATIENCE_S} s"
    lines = said.splitlines()
    return "" if lines[:1] == ["ready"] and len(lines) == 2 else (lines or ["no bpf(2) here"])[-1]


def lacks(major: int, minor: int, what: str) -> str:
    """Empty if the running kernel is of that version at least; else what to say.  No ``.ci/run`` gives it another."""
    release = os.uname().release
    old = tuple(int(part) for part in re.findall(r"\d+", release)[:2]) < (major, minor)
    return f"Linux {release} has no {what}: {major}.{minor}" if old else ""


def lacks_acquire() -> str:
    """Of load-acquire and store-release."""
    return lacks(6, 15, "load-acquire")


def lacks_arena() -> str:
    """Of an arena, with atomic operations in it."""
    return lacks(6, 10, "arena with atomic operations")


@contextmanager
def turn() -> Iterator[None]:
    """One loader at a time on this machine, so that no crowd of freed programs gathers."""
    path = os.path.join(tempfile.gettempdir(), f"uxk-linux-{os.getuid()}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
