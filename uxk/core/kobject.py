"""Kobjects, attributes and links: what the tree is made of (lib/kobject.c, fs/sysfs).

Attributes are defined once, in tables that all kobjects of a sort share; a kobject holds references
only, so thousands cost little.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from uxk import limits
from uxk.core.waitlist import WaitList
from uxk.errors import TreeError

COMPONENT_MAX_BYTES: Final = 255
"""Longest name in a path (Linux: NAME_MAX)."""
MESSAGE_MAX_CHARS: Final = 512

Show: TypeAlias = Callable[[Any], str]
Store: TypeAlias = Callable[[Any, str], None]
Kind: TypeAlias = Literal["dir", "file", "link"]


def brief(text: str) -> str:
    """Fit for an error message and a terminal, whoever supplied it."""
    shown = text if len(text) <= MESSAGE_MAX_CHARS else text[: MESSAGE_MAX_CHARS - 3] + "..."
    return shown if shown.isprintable() else repr(shown)


def tree_error(path: str, complaint: str, number: int) -> TreeError:
    """An error that names the place."""
    return TreeError(f"{brief(path)}: {complaint}", errno=number)


def size_bytes(text: str) -> int | None:
    """Length in UTF-8, or None if the text cannot be encoded (lone surrogates)."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def check_name(name: str) -> None:
    """Raises ``TreeError`` (EINVAL, ENAMETOOLONG) unless ``name`` fits into a path."""
    if len(name) > COMPONENT_MAX_BYTES or (size_bytes(name) or 0) > COMPONENT_MAX_BYTES:
        expected = f"is longer than {COMPONENT_MAX_BYTES} bytes"
        raise TreeError(f"name {brief(name)!r} {expected}", errno=errno.ENAMETOOLONG)
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        expected = "must be printable, not empty, '.' or '..', and without '/'"
        raise TreeError(f"name {brief(name)!r} {expected}", errno=errno.EINVAL)


def split_path(path: str) -> list[str]:
    """The components of an absolute path; ``[]`` for ``"/"``.  One slash at the end is ignored.

    Raises ``TreeError``: EINVAL for a relative path, an empty component, ``.``, ``..`` or NUL;
    ENAMETOOLONG beyond ``PATH_MAX_BYTES``.
    """
    if len(path) > limits.PATH_MAX_BYTES:
        raise tree_error(path, f"longer than {limits.PATH_MAX_BYTES} bytes", errno.ENAMETOOLONG)
    size = size_bytes(path)
    if size is None or not path.startswith("/") or "\0" in path:
        raise tree_error(path, "expected an absolute path without NUL", errno.EINVAL)
    if size > limits.PATH_MAX_BYTES:
        raise tree_error(path, f"longer than {limits.PATH_MAX_BYTES} bytes", errno.ENAMETOOLONG)
    if path == "/":
        return []
    names = path.removesuffix("/").split("/")[1:]
    if any(name in ("", ".", "..") for name in names):
        raise tree_error(path, "no component may be empty, '.' or '..'", errno.EINVAL)
    return names


class Attribute(msgspec.Struct, frozen=True, eq=False):
    """A file: ``show(owner)`` gives its text, ``store(owner, text)`` takes a new one.

    Texts are without newline.  ``mode`` 0 means: 0444 with ``show`` only, 0644 with both, 0200
    with ``store`` only.  Raises ``TreeError`` (EINVAL) for a bad name, or a mode that
    promises what is not there.
    """

    name: str
    show: Show | None = None
    store: Store | None = None
    mode: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        readable, writable = self.show is not None, self.store is not None
        derived = (0o444 if readable else 0) if not writable else (0o644 if readable else 0o200)
        mode = self.mode or derived
        allowed = (0o444 if readable else 0) | (0o222 if writable else 0)
        if not mode or mode & ~allowed:
            raise TreeError(
                f"attribute {self.name}: mode {mode:#o}, expected bits of {allowed:#o}",
                errno=errno.EINVAL,
            )
        msgspec.structs.force_setattr(self, "mode", mode)


AttributeTable: TypeAlias = Mapping[str, Attribute]
Attributes: TypeAlias = AttributeTable | tuple[AttributeTable, ...] | None


def attribute_table(*attributes: Attribute) -> AttributeTable:
    """A read-only table to share among kobjects.  ``TreeError`` (EEXIST) for a name used twice."""
    table: dict[str, Attribute] = {}
    for attribute in attributes:
        if attribute.name in table:
            raise TreeError(f"attribute {attribute.name}: defined twice", errno=errno.EEXIST)
        table[attribute.name] = attribute
    return MappingProxyType(table)


class Stat(NamedTuple):
    """What ``stat`` tells: kind, permission bits, size (as sysfs: a page for every file)."""

    kind: Kind
    mode: int
    size_bytes: int


class Link:
    """A symbolic link to a kobject (fs/sysfs/symlink.c)."""

    __slots__ = ("name", "parent", "target")

    def __init__(self, name: str, parent: Kobject, target: Kobject) -> None:
        self.name = name
        self.parent = parent
        self.target = target

    @property
    def text(self) -> str:
        """Relative to where the link stands, as sysfs does: right under any mount point."""
        here, there = split_path(self.parent.path), split_path(self.target.path)
        same = 0
        while same < min(len(here), len(there)) and here[same] == there[same]:
            same += 1
        return "/".join([".."] * (len(here) - same) + there[same:]) or "."


class Kobject:
    """A directory: a named place for an owner's attributes, children and links.

    ``implicit`` marks one made only because something was added below; it goes with that.
    """

    __slots__ = ("children", "events", "extra", "implicit", "name", "owner", "parent", "tables")

    def __init__(self, name: str, parent: Kobject | None) -> None:
        self.name = name
        self.parent = parent
        self.owner: object = None
        self.tables: tuple[AttributeTable, ...] = ()
        self.implicit = True
        self.children: dict[str, Kobject | Link] | None = None
        self.extra: dict[str, Attribute] | None = None
        self.events: dict[str, WaitList] | None = None

    @property
    def path(self) -> str:
        """Absolute path; of one that was removed, its name and ``(deleted)``."""
        if self.parent is None:
            return self.name if self.name == "/" else f"{self.name} (deleted)"
        above = self.parent.path
        return f"/{self.name}" if above == "/" else f"{above}/{self.name}"

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return 0 if self.parent is None else self.parent.depth + 1

    def attribute(self, name: str) -> Attribute | None:
        """The attribute of that name, from the shared tables or added at run time."""
        for table in self.tables:
            if (found := table.get(name)) is not None:
                return found
        return self.extra.get(name) if self.extra else None

    def child(self, name: str) -> Kobject | Link | None:
        """The kobject or link of that name."""
        return self.children.get(name) if self.children else None

    def names(self) -> list[str]:
        """Everything in the directory, sorted."""
        found = [name for table in self.tables for name in table]
        return sorted([*found, *(self.extra or ()), *(self.children or ())])

    @property
    def bare(self) -> bool:
        """Nothing is left that it was made for."""
        return self.implicit and self.parent is not None and not self.children and not self.extra


def subtree(top: Kobject) -> Iterator[Kobject]:
    """A kobject and all below it, in no useful order; links are not followed."""
    stack = [top]
    while stack:
        node = stack.pop()
        stack.extend(c for c in (node.children or {}).values() if isinstance(c, Kobject))
        yield node


def stat_of(entry: Kobject | Link | Attribute) -> Stat:
    """What ``stat`` tells of one entry."""
    if isinstance(entry, Attribute):
        return Stat("file", entry.mode, limits.SHOW_MAX_BYTES)
    if isinstance(entry, Link):
        return Stat("link", 0o777, len(entry.text.encode()))
    return Stat("dir", 0o755, 0)
