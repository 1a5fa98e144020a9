"""The tree of kobjects and attributes behind /sys and /proc, in memory.

Models sysfs (fs/sysfs/file.c, fs/kernfs/file.c): a directory is a kobject, a file is an attribute
of a kobject, a link points at a kobject.  Nothing that an attribute's code raises leaves ``read``
or ``write`` raw: it becomes a ``TreeError`` with an errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from uxk import limits
from uxk.core.kobject import (
    Attribute,
    Attributes,
    AttributeTable,
    Kobject,
    Link,
    Stat,
    attribute_table,
    brief,
    check_name,
    size_bytes,
    split_path,
    stat_of,
    subtree,
    tree_error,
)
from uxk.core.waitlist import WaitList
from uxk.errors import KernelBug, TreeError, UxkError

__all__ = ["Attribute", "AttributeTable", "Kobject", "Stat", "Tree", "attribute_table"]

DEPTH_MAX: Final = 64
"""Deepest kobject; links could otherwise be used to nest beyond the longest path."""
NODES_MAX: Final = 1 << 20
"""Kobjects and links of one tree: 10,000 extensions with about 100 each."""
EXTRA_ATTRIBUTES_MAX: Final = 1024
"""Run-time attributes of one kobject: an extension cannot fill the memory by publishing."""
LINKS_FOLLOWED_MAX: Final = 40
"""Links followed in one look-up (Linux: MAXSYMLINKS)."""

T = TypeVar("T")


class Tree:
    """One tree of kobjects; paths are absolute.  Every method raises only ``TreeError``.

    ``on_bug(path, exception)`` hears of attribute code and waiters that raise what they should not,
    and of texts that are too long.  ``writer`` names who is writing while a ``store`` runs.
    """

    __slots__ = ("_inbound", "_kobjects", "_links", "_on_bug", "_root", "writer")

    def __init__(self, *, on_bug: Callable[[str, BaseException], None] | None = None) -> None:
        self._root = Kobject("/", None)
        self._root.implicit = False
        self._kobjects, self._links = 1, 0
        self._inbound: dict[Kobject, dict[Link, None]] = {}
        self._on_bug = on_bug
        self.writer = ""

    # --- building ---

    def add(self, path: str, owner: object = None, attributes: Attributes = None) -> Kobject:
        """Adds a kobject; missing parents are made, and go again with their last child.

        A directory there already is taken over if it has neither owner nor shared attributes;
        anything else is EEXIST.
        """
        names = split_path(path)
        node, missing = self._locate(path, names)
        if not isinstance(attributes, tuple):
            attributes = (attributes,) if attributes else ()
        self._check_tables(path, attributes, None if missing else node)
        if missing:
            node = self._grow(node, self._check_missing(path, node, missing))
        elif node.owner is not None or node.tables or self._final_link(path, names):
            raise tree_error(path, "exists already", errno.EEXIST)
        node.owner, node.tables, node.implicit = owner, attributes, False
        return node

    def add_attribute(self, path: str, attribute: Attribute, *, parents: bool = False) -> None:
        """Adds a run-time attribute to one kobject, which ``parents`` makes if it is missing."""
        node, missing = self._locate(path, split_path(path))
        if missing and (not parents or node.attribute(missing[0])):
            self._find(path)
            raise tree_error(path, "is an attribute, expected a directory", errno.ENOTDIR)
        if not missing and (node.attribute(attribute.name) or node.child(attribute.name)):
            raise tree_error(f"{path}/{attribute.name}", "exists already", errno.EEXIST)
        if not missing and node.extra and len(node.extra) >= EXTRA_ATTRIBUTES_MAX:
            raise tree_error(path, f"at most {EXTRA_ATTRIBUTES_MAX} more attributes", errno.ENOSPC)
        if missing:
            node = self._grow(node, self._check_missing(path, node, missing))
        if node.extra is None:
            node.extra = {}
        node.extra[attribute.name] = attribute

    def remove_attribute(self, path: str, name: str) -> None:
        """Removes a run-time attribute; its waiters are woken.  EPERM for one of a shared table."""
        node = self.lookup(path)
        if not node.extra or name not in node.extra:
            if node.attribute(name):
                complaint = "belongs to all kobjects of its sort; remove the kobject"
                raise tree_error(f"{path}/{name}", complaint, errno.EPERM)
            raise tree_error(f"{path}/{name}", "no such attribute", errno.ENOENT)
        del node.extra[name]
        event = node.events.pop(name, None) if node.events else None
        if node.bare:
            self._drop(node)
        if event is not None:
            event.close(self._reporter(f"{path}/{name}"))

    def link(self, path: str, target: str) -> None:
        """Links to the kobject that ``target`` names now; the link goes when the target goes."""
        kobject = self.lookup(target)
        node, missing = self._locate(path, split_path(path))
        if not missing:
            raise tree_error(path, "exists already", errno.EEXIST)
        names = self._check_missing(path, node, missing)
        parent = self._grow(node, names[:-1])
        link = Link(names[-1], parent, kobject)
        parent.children = parent.children if parent.children is not None else {}
        parent.children[link.name] = link
        self._inbound.setdefault(kobject, {})[link] = None
        self._links += 1

    def remove(self, path: str) -> None:
        """Removes a link, a run-time attribute, or a kobject with all below it and all links to it.

        Waiters on what is removed are woken a last time, after the tree is whole again.
        """
        names = split_path(path)
        if not names:
            raise tree_error(path, "the root stays", errno.EBUSY)
        link = self._final_link(path, names)
        if link is not None:
            self._unlink(link)
            if link.parent.bare:
                self._drop(link.parent)
            return
        node, attribute = self._find(path)
        if attribute is not None:
            self.remove_attribute(node.path, attribute.name)
        else:
            self._drop(node)

    # --- reading and writing ---

    def read(self, path: str, *, root: bool = True) -> str:
        """The attribute's text, without the newline that ``cat`` would show at its end.

        Longer than a page is cut to fit and reported, as fs/sysfs/file.c does.  ENOENT, ENOTDIR,
        EISDIR, ELOOP, EACCES (no read bit, or none for others and not ``root``), or the errno of
        what ``show`` raised.
        """
        node, attribute = self._file(path)
        show = attribute.show
        if show is None or not attribute.mode & (0o444 if root else 0o004):
            raise tree_error(path, f"not readable, mode {attribute.mode:#o}", errno.EACCES)
        text, cut = self._call(path, lambda: _bounded(show(node.owner)))
        if cut:
            self._bug(path, ValueError(f"show gave more than {limits.SHOW_MAX_BYTES - 1} bytes"))
        return text

    def write(self, path: str, value: str, *, root: bool = True, writer: str = "") -> None:
        """Stores a value; one newline at its end is dropped.  ``writer`` is for the record.

        E2BIG beyond ``SHOW_MAX_BYTES``, EACCES (no write bit, or none for others and not ``root``),
        EINVAL or whatever ``store`` raised; ENOENT, ENOTDIR, EISDIR, ELOOP.
        """
        node, attribute = self._file(path)
        store = attribute.store
        if store is None or not attribute.mode & (0o222 if root else 0o002):
            raise tree_error(path, f"not writable, mode {attribute.mode:#o}", errno.EACCES)
        long = len(value) > limits.SHOW_MAX_BYTES
        size = None if long else size_bytes(value)
        if long or (size is not None and size > limits.SHOW_MAX_BYTES):
            raise tree_error(path, f"value longer than {limits.SHOW_MAX_BYTES} bytes", errno.E2BIG)
        if size is None:
            raise tree_error(path, "value is not valid text", errno.EINVAL)
        before, self.writer = self.writer, writer or ("root" if root else "user")
        try:
            self._call(path, lambda: store(node.owner, value.removesuffix("\n")))
        finally:
            self.writer = before

    # --- looking around ---

    def lookup(self, path: str) -> Kobject:
        """The kobject at ``path``, links followed.  ENOENT, ENOTDIR."""
        node, attribute = self._find(path)
        if attribute is not None:
            raise tree_error(path, "is an attribute, expected a directory", errno.ENOTDIR)
        return node

    def canonical(self, path: str) -> str:
        """The path without links: what access rules must be checked against."""
        node, attribute = self._find(path)
        return node.path if attribute is None else f"{node.path.rstrip('/')}/{attribute.name}"

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something; False for a malformed one."""
        try:
            self._find(path)
        except TreeError:
            return False
        return True

    def listdir(self, path: str = "/") -> list[str]:
        """Sorted names of attributes, children and links."""
        return self.lookup(path).names()

    def readlink(self, path: str) -> str:
        """The link's relative target.  EINVAL if ``path`` is no link."""
        link = self._final_link(path, split_path(path))
        if link is None:
            self._find(path)
            raise tree_error(path, "is no link", errno.EINVAL)
        return link.text

    def stat(self, path: str) -> Stat:
        """Kind, mode and size of what is there; a link at the end is not followed (lstat)."""
        link = self._final_link(path, split_path(path))
        if link is not None:
            return stat_of(link)
        node, attribute = self._find(path)
        return stat_of(attribute or node)

    def walk(self, path: str = "/") -> Iterator[tuple[str, Stat]]:
        """Everything below a directory, depth first and sorted; links are listed, not followed."""
        return self._walk(self.lookup(path))

    def render(self, path: str = "/", *, values: bool = False) -> str:
        """A picture like that of ``tree``; with ``values``, each attribute's first line."""
        node = self.lookup(path)
        return "\n".join([node.path, *self._render(node, "", values)])

    # --- news ---

    def notify(self, path: str) -> None:
        """sysfs_notify: counts one more generation of ``path`` and calls its waiters once."""
        self._event(path).wake(self._reporter(path))

    def generation(self, path: str) -> int:
        """How often ``path`` was notified since it was added."""
        node, attribute = self._find(path)
        event = (node.events or {}).get(attribute.name if attribute else "")
        return event.generation if event is not None else 0  # one without waiters is empty, and so false

    def poll(self, path: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` at every notify, and a last time when ``path`` is removed.

        Returns what cancels it.  ENOSPC beyond ``POLL_WAITERS_MAX`` waiters on one path.
        """
        return self._event(path).add(callback)

    # --- counts, to prove that nothing is left ---

    @property
    def kobject_count(self) -> int:
        """Kobjects, the root included."""
        return self._kobjects

    @property
    def link_count(self) -> int:
        """Links."""
        return self._links

    @property
    def attribute_count(self) -> int:
        """Attributes of all kobjects, shared and run-time; counted afresh."""
        return sum(len(node.extra or ()) + sum(len(table) for table in node.tables) for node in self._all())

    @property
    def waiter_count(self) -> int:
        """Registered waiters; counted afresh."""
        return sum(len(event) for node in self._all() for event in (node.events or {}).values())

    # --- inside ---

    def _locate(self, path: str, names: list[str]) -> tuple[Kobject, list[str]]:
        """The deepest kobject on the way, and the names that are missing below it."""
        node, followed = self._root, 0
        for index, name in enumerate(names):
            child = node.child(name)
            if child is None:
                return node, names[index:]
            if isinstance(child, Link):
                followed += 1
                if followed > LINKS_FOLLOWED_MAX:
                    complaint = f"more than {LINKS_FOLLOWED_MAX} links on the way"
                    raise tree_error(path, complaint, errno.ELOOP)
                child = child.target
            node = child
        return node, []

    def _find(self, path: str) -> tuple[Kobject, Attribute | None]:
        node, missing = self._locate(path, split_path(path))
        if not missing:
            return node, None
        attribute = node.attribute(missing[0])
        if attribute is None:
            raise tree_error(path, f"no {brief(missing[0])!r} in {node.path}", errno.ENOENT)
        if len(missing) > 1:
            raise tree_error(path, f"{missing[0]!r} is an attribute", errno.ENOTDIR)
        return node, attribute

    def _file(self, path: str) -> tuple[Kobject, Attribute]:
        node, attribute = self._find(path)
        if attribute is None:
            raise tree_error(path, "is a directory, expected an attribute", errno.EISDIR)
        return node, attribute

    def _final_link(self, path: str, names: list[str]) -> Link | None:
        if not names:
            return None
        node, missing = self._locate(path, names[:-1])
        child = None if missing else node.child(names[-1])
        return child if isinstance(child, Link) else None

    def _event(self, path: str) -> WaitList:
        node, attribute = self._find(path)
        if node.events is None:
            node.events = {}
        return node.events.setdefault(attribute.name if attribute else "", WaitList())

    def _check_missing(self, path: str, node: Kobject, missing: list[str]) -> list[str]:
        """Everything that could be wrong with growing, before anything is made."""
        for name in missing:
            check_name(name)
        if node.attribute(missing[0]):
            number = errno.EEXIST if len(missing) == 1 else errno.ENOTDIR
            raise tree_error(path, f"{missing[0]!r} is an attribute of {node.path}", number)
        if node.depth + len(missing) > DEPTH_MAX:
            raise tree_error(path, f"deeper than {DEPTH_MAX}", errno.ENAMETOOLONG)
        if self._kobjects + self._links + len(missing) > NODES_MAX:
            raise tree_error(path, f"the tree is full, {NODES_MAX} nodes", errno.ENOSPC)
        return missing

    def _check_tables(self, path: str, tables: tuple[AttributeTable, ...], node: Kobject | None) -> None:
        taken = {*(node.children or ()), *(node.extra or ())} if node else set[str]()
        if not taken and len(tables) < 2:
            return
        for table in tables:
            if twice := taken & table.keys():
                raise tree_error(path, f"{min(twice)!r} exists already", errno.EEXIST)
            taken |= table.keys()

    def _grow(self, node: Kobject, names: list[str]) -> Kobject:
        for name in names:
            child = Kobject(name, node)
            node.children = node.children if node.children is not None else {}
            node.children[name] = child
            node = child
        self._kobjects += len(names)
        return node

    def _unlink(self, link: Link) -> None:
        """Takes a link out of its directory and out of its target's list."""
        if link.parent.children:
            link.parent.children.pop(link.name, None)
        inbound = self._inbound[link.target]
        del inbound[link]
        if not inbound:
            del self._inbound[link.target]
        self._links -= 1

    def _drop(self, first: Kobject) -> None:
        """Cuts a subtree off, then every directory that has lost its purpose by that."""
        gone: list[tuple[str, WaitList]] = []
        work = [first]
        while work:
            node = work.pop()
            if node.parent is not None:
                work.extend(parent for parent in self._cut(node, gone) if parent.bare)
        for path, event in gone:
            event.close(self._reporter(path))

    def _cut(self, top: Kobject, gone: list[tuple[str, WaitList]]) -> list[Kobject]:
        """Removes one subtree; returns the directories outside that lost an entry."""
        doomed = list(subtree(top))
        parent = top.parent
        assert parent is not None and parent.children is not None
        touched = [parent]
        for node in doomed:
            for name, event in (node.events or {}).items():
                gone.append((f"{node.path}/{name}" if name else node.path, event))
            for child in tuple((node.children or {}).values()):
                if isinstance(child, Link):
                    self._unlink(child)
        for node in doomed:
            for link in tuple(self._inbound.get(node, ())):
                touched.append(link.parent)
                self._unlink(link)
        del parent.children[top.name]
        for node in doomed:
            node.parent = node.children = node.extra = node.events = None
        self._kobjects -= len(doomed)
        return touched

    def _all(self) -> Iterator[Kobject]:
        return subtree(self._root)

    def _walk(self, node: Kobject) -> Iterator[tuple[str, Stat]]:
        base = node.path.rstrip("/")
        for name in node.names():
            entry = node.child(name) or node.attribute(name)
            if entry is None:
                continue
            yield f"{base}/{name}", stat_of(entry)
            if isinstance(entry, Kobject):
                yield from self._walk(entry)

    def _render(self, node: Kobject, indent: str, values: bool) -> Iterator[str]:
        base, names = node.path.rstrip("/"), node.names()
        for name in names:
            last = name == names[-1]
            branch, deeper = ("└── ", "    ") if last else ("├── ", "│   ")
            entry = node.child(name)
            if isinstance(entry, Kobject):
                yield indent + branch + name
                yield from self._render(entry, indent + deeper, values)
            elif entry is not None:
                yield f"{indent}{branch}{name} -> {entry.text}"
            else:
                yield indent + branch + name + (self._value(f"{base}/{name}") if values else "")

    def _value(self, path: str) -> str:
        try:
            first, _, more = self.read(path).partition("\n")
        except TreeError as exc:
            return f" <{exc.errno_name}>"
        return f" = {brief(first)}" + (" ..." if more else "")

    def _call(self, path: str, function: Callable[[], T]) -> T:
        """Runs attribute code; whatever it raises becomes a ``TreeError``."""
        try:
            return function()
        except Exception as exc:
            number = _errno_of(exc)
            if number is None:
                self._bug(path, exc)
            raise TreeError(_complaint(path, exc), errno=number or errno.EIO) from exc

    def _bug(self, path: str, exc: BaseException) -> None:
        if self._on_bug is not None:
            self._on_bug(path, exc)

    def _reporter(self, path: str) -> Callable[[Exception], None]:
        return lambda exc: self._bug(path, exc)


def _bounded(text: object) -> tuple[str, bool]:
    """Cut between characters to a page with the newline to come, and whether that was needed."""
    if not isinstance(text, str):
        raise TypeError(f"show gave {type(text).__name__}, expected str")
    raw = text.removesuffix("\n").encode()
    room = limits.SHOW_MAX_BYTES - 1
    return raw[:room].decode(errors="ignore"), len(raw) > room


def _errno_of(exc: Exception) -> int | None:
    """The errno of an answer that attribute code may give; None if it is a bug."""
    if isinstance(exc, KernelBug):
        return None
    if isinstance(exc, (UxkError, OSError)):
        return exc.errno or errno.EIO
    return errno.EINVAL if isinstance(exc, (ValueError, msgspec.ValidationError)) else None


def _complaint(path: str, exc: Exception) -> str:
    """Names the place once, however deep attribute code nests; ``__str__`` may fail."""
    try:
        text = str(exc.args[0]) if isinstance(exc, UxkError) and exc.args else str(exc)
    except Exception:
        text = ""
    if _errno_of(exc) is None or not text:
        text = f"{type(exc).__name__}: {text}"
    return text if text.startswith(path) else f"{brief(path)}: {brief(text)}"
