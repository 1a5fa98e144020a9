"""A listening Unix socket that is never open to others, not even for an instant, and never takes another's place.

It is bound and already listening inside a private directory before its public name appears (a hard link), so no
window is left between bind and chmod, and whoever finds the name and is refused knows that it is stale.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final, TypeAlias

from uxk.errors import UsageError

BACKLOG: Final = 64
ATTEMPTS_MAX: Final = 4
"""Another kernel may come and go on the same path while this one looks."""
_PATH_MAX_BYTES: Final = 107
"""Longest path of a Unix socket (Linux: UNIX_PATH_MAX, 108 with its NUL)."""

Identity: TypeAlias = tuple[int, int]
"""Device and inode."""


def listen(path: Path) -> tuple[socket.socket, Identity]:
    """A non-blocking listening socket at ``path``, mode 0600, and its identity for :func:`remove`.

    A stale socket there is replaced.  Raises UsageError: EADDRINUSE if somebody listens there, EEXIST if it is
    no socket, ENAMETOOLONG, or what the system says of the directory.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".uxk-", dir=path.parent) as folder:
            private = Path(folder, "s")
            if max(len(os.fsencode(private)), len(os.fsencode(path))) > _PATH_MAX_BYTES:
                text = f"{path}: too long for a socket, at most {_PATH_MAX_BYTES - len('/.uxk-12345678/s')} bytes"
                raise UsageError(f"{text} for its directory", errno=errno.ENAMETOOLONG)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                return sock, _publish(sock, private, path)
            except BaseException:
                sock.close()
                raise
    except OSError as exc:
        raise UsageError(f"{path}: cannot listen there: {exc.strerror}", errno=exc.errno) from exc


def remove(path: Path, identity: Identity) -> None:
    """Removes our own socket; what somebody else has put there since stays."""
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) == identity:
            path.unlink()
    except OSError:
        pass


def _publish(sock: socket.socket, private: Path, path: Path) -> Identity:
    sock.setblocking(False)
    sock.bind(os.fspath(private))
    private.chmod(0o600)
    sock.listen(BACKLOG)
    found = private.lstat()
    for _ in range(ATTEMPTS_MAX):
        try:
            os.link(private, path)
            return found.st_dev, found.st_ino
        except FileExistsError:
            _clear_stale(path, private.with_name("stale"))
    raise UsageError(f"{path}: other kernels keep taking it", errno=errno.EADDRINUSE)


def _clear_stale(path: Path, aside: Path) -> None:
    """Takes away a socket that nobody listens on; raises for anything else."""
    try:
        found = path.lstat()
        if not stat.S_ISSOCK(found.st_mode):
            raise UsageError(f"{path}: exists and is no socket", errno=errno.EEXIST)
        if _answers(path):
            raise UsageError(f"{path}: a kernel listens there already", errno=errno.EADDRINUSE)
        path.rename(aside)
    except FileNotFoundError:
        return
    moved = aside.lstat()
    if (moved.st_dev, moved.st_ino) != (found.st_dev, found.st_ino):
        os.link(aside, path)  # a live one took the place of the stale one just now: put it back
    aside.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its backlog is full: busy, not dead
            return True
    return True
