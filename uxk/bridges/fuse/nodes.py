"""Inodes: the numbers by which Linux names the paths that it has looked up (fs/fuse/inode.c: nlookup)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from uxk import limits
from uxk.bridges.face.api import Stat
from uxk.core.kobject import tree_error

ROOT: Final = 1
"""FUSE_ROOT_ID."""
_SECOND: Final = 1 << 63
"""From here on, numbers of paths whose own number is taken by another path."""


class Node:
    """A path that Linux knows; ``id`` says what was there when it was looked up, ``stat`` all about it."""

    __slots__ = ("id", "ino", "lookups", "path", "stat")

    def __init__(self, ino: int, path: str, id: int) -> None:
        self.ino = ino
        self.path = path
        self.id = id
        self.lookups = 0
        self.stat: Stat | None = None


class NodeTable:
    """All of them.  A number stays with its path for as long as Linux holds on to it."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {ROOT: Node(ROOT, "/", 0)}
        self._moved: dict[tuple[str, int], int] = {}
        self._next = _SECOND

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: int) -> Node:
        """What Linux calls ``ino``.  ESTALE if it should have forgotten it."""
        node = self._nodes.get(ino)
        if node is None:
            raise tree_error(f"inode {ino}", "forgotten", errno.ESTALE)
        return node

    def number(self, path: str, id: int) -> int:
        """The inode number that ``path`` has, or would get: its own ``id``, unless another path has that."""
        if path == "/":
            return ROOT
        known = self._nodes.get(id)
        if id > ROOT and (known is None or known.path == path):
            return id
        if (path, id) not in self._moved:
            return self._next
        return self._moved[path, id]

    def look_up(self, path: str, id: int) -> int:
        """Counts one more look-up of ``path``; its inode number."""
        ino = self.number(path, id)
        node = self._nodes.get(ino)
        if node is None:
            node = self._nodes[ino] = Node(ino, path, id)
            if ino >= _SECOND:
                self._moved[path, id] = ino
                self._next += 1
        node.lookups += 1
        return ino

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Takes back look-ups, ``(inode, how many)`` each; a number that is not known is ignored."""
        for ino, lookups in forgotten:
            node = self._nodes.get(ino)
            if node is None or ino == ROOT:
                continue
            node.lookups -= lookups
            if node.lookups <= 0:
                del self._nodes[ino]
                self._moved.pop((node.path, node.id), None)


def child_path(parent: str, name: bytes) -> str:
    """The path of a name in a folder.  ENOENT for one that is no text; ENAMETOOLONG."""
    try:
        path = f"{parent.rstrip('/')}/{name.decode()}"
    except UnicodeDecodeError:
        raise tree_error(parent, f"no {name[:64]!r} here", errno.ENOENT) from None
    if len(path) > limits.PATH_MAX_BYTES:
        raise tree_error(path, f"longer than {limits.PATH_MAX_BYTES} bytes", errno.ENAMETOOLONG)
    return path


def check_link(path: str, target: str) -> bytes:
    """A link's target as Linux gets it.  EXDEV unless it is relative and stays in the mount, whatever is linked inside.

    So ``..`` may stand at its beginning only, and not more often than there are folders above the link.
    """
    parts = target.split("/")
    ups = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    plain = all(part not in ("", "..") for part in parts[ups:])
    if not plain or ups > path.count("/") - 1:
        raise tree_error(path, f"leads out of the mount, to {target!r}", errno.EXDEV)
    return target.encode()
