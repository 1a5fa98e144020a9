"""Typed sysctls under /proc/sys (kernel/sysctl.c): a value with type, range, default and history.

The type is that of the default: int, bool, str, or a tuple of ints of fixed length.  Text comes in
through the tree, values through :meth:`SysctlTable.set`; both are validated alike.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from uxk import limits
from uxk.core.kobject import Attribute, brief, size_bytes, split_path
from uxk.core.suggest import did_you_mean
from uxk.core.tree import Tree
from uxk.errors import TreeError

SYSCTLS_MAX: Final = 4096
"""Sysctls of one kernel (a Linux machine has about 1,000 to 1,500)."""
TUPLE_MAX: Final = 64
"""Numbers in one value."""
ROOT: Final = "/proc/sys"

Value: TypeAlias = int | str | tuple[int, ...]
V = TypeVar("V", bound=Value)

_INTEGER: Final = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})", re.ASCII)
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "y", "yes", "t", "true", "on"), True),
    **dict.fromkeys(("0", "n", "no", "f", "false", "off"), False),
}
_SWAP: Final = str.maketrans("./", "/.")


class Sysctl(msgspec.Struct, Generic[V], frozen=True, eq=False):
    """What a sysctl is: slashed or dotted name, default, range, help (Linux: struct ctl_table).

    ``minimum`` and ``maximum`` bound every number, and are signed 64-bit unless given; ``choices``
    are the only texts accepted if there are any.  ``on_change(value)`` is called when a write has
    changed the value; if it raises, the old value is back and the writer gets the error.
    """

    name: str
    default: V
    minimum: int = -limits.I64_MAX - 1
    maximum: int = limits.I64_MAX
    choices: tuple[str, ...] = ()
    help: str = ""
    on_change: Callable[[V], None] | None = None
    read_only: bool = False

    @property
    def expected(self) -> str:
        """Type and range in one phrase, for messages."""
        if isinstance(self.default, bool):
            return "a bool, 0 or 1"
        if isinstance(self.default, str):
            room = f"printable text of at most {limits.SHOW_MAX_BYTES - 1} bytes"
            return f"one of {', '.join(self.choices)}" if self.choices else room
        what = f"{len(self.default)} integers" if isinstance(self.default, tuple) else "an integer"
        return f"{what} in {self.minimum}..{self.maximum}"

    def check(self, value: Any) -> V:
        """The value, if type and range are right; ``TreeError`` (EINVAL) naming both if not."""
        if not self._good(value):
            raise self._refusal(value)
        checked: V = value
        return checked

    def parse(self, text: str) -> V:
        """The value a text stands for: decimal or 0x, 0/1/yes/no/on/off, blanks between numbers."""
        default: Value = self.default
        value: object = None
        if isinstance(default, bool):
            value = _BOOLEANS.get(text.strip().lower())
        elif isinstance(default, str):
            value = text
        elif isinstance(default, tuple):
            words = text.split(None, TUPLE_MAX)
            if all(map(_INTEGER.fullmatch, words)):
                value = tuple(map(_integer, words))
        elif _INTEGER.fullmatch(text.strip()):
            value = _integer(text.strip())
        if not self._good(value):
            raise self._refusal(text)
        return self.check(value)

    def _good(self, value: object) -> bool:
        default: Value = self.default
        if type(value) is not type(default):
            return False
        if isinstance(value, str):
            size = size_bytes(value)
            fits = size is not None and size < limits.SHOW_MAX_BYTES
            return fits and value.isprintable() and (not self.choices or value in self.choices)
        if isinstance(value, tuple) and isinstance(default, tuple):
            return len(value) == len(default) and all(map(self._fits, value))
        return isinstance(value, bool) or self._fits(value)

    def _fits(self, value: object) -> bool:
        return type(value) is int and self.minimum <= value <= self.maximum

    def _refusal(self, value: object) -> TreeError:
        shown = brief(value if isinstance(value, str) else _shown(value))
        complaint = f"{ROOT}/{self.name}: {shown!r}, expected {self.expected}"
        return TreeError(complaint, errno=errno.EINVAL)


class SysctlEntry(Generic[V]):
    """A registered sysctl; subsystems keep it and read ``value`` on their decision paths."""

    __slots__ = ("spec", "value", "writer", "writes")

    def __init__(self, spec: Sysctl[V]) -> None:
        self.spec = spec
        self.value: V = spec.default
        self.writer = ""
        """Who wrote last; empty while it has its default from the start."""
        self.writes = 0

    @property
    def text(self) -> str:
        """As /proc/sys shows it."""
        value: Value = self.value
        if isinstance(value, tuple):
            return "\t".join(map(str, value))
        return str(int(value)) if isinstance(value, bool) else str(value)


class SysctlState(msgspec.Struct, frozen=True):
    """One sysctl in a snapshot."""

    value: Value
    default: Value
    writer: str
    writes: int


def canonical_name(name: str) -> str:
    """``vm.dirty_ratio`` and ``vm/dirty_ratio`` as the latter.

    As sysctl(8): if a dot comes before the first slash, dots and slashes change places, so that
    ``net.eth0/1.mtu`` names the file ``net/eth0.1/mtu``.
    """
    dot, slash = name.find("."), name.find("/")
    return name.translate(_SWAP) if dot >= 0 and (slash < 0 or dot < slash) else name


class SysctlTable:
    """All sysctls of one kernel; each is also a file of the tree below ``/proc/sys``.

    Raises ``TreeError``: ENOENT for an unknown name, EEXIST, EINVAL, EACCES (read-only), ENOSPC;
    and from ``set`` whatever ``on_change`` raises.
    """

    __slots__ = ("_entries", "_tree", "on_write")

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.on_write: Callable[[SysctlEntry[Any], Value], object] = lambda entry, before: None
        """Told of every write that was done, with the value from before it."""
        self._entries: dict[str, SysctlEntry[Any]] = {}

    def __contains__(self, name: str) -> bool:
        return canonical_name(name) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SysctlEntry[Any]]:
        return iter([self._entries[name] for name in self.names()])

    def register(self, spec: Sysctl[V]) -> SysctlEntry[V]:
        """Adds a sysctl with its default.  EINVAL if the specification contradicts itself."""
        name = canonical_name(spec.name)
        spec = msgspec.structs.replace(spec, name=name)
        _check_spec(spec)
        if len(self._entries) >= SYSCTLS_MAX:
            raise TreeError(f"{name}: at most {SYSCTLS_MAX} sysctls", errno=errno.ENOSPC)
        split_path(f"{ROOT}/{name}")  # every component, before one at the end could pass as a slash
        folder, leaf = _place(name)
        entry = SysctlEntry(spec)

        def store(_owner: object, text: str) -> None:
            self._commit(entry, spec.parse(text), self._tree.writer)

        attribute = Attribute(leaf, lambda _owner: entry.text, None if spec.read_only else store)
        self._tree.add_attribute(folder, attribute, parents=True)
        self._entries[name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Removes a sysctl with its file; whoever holds the entry keeps its last value."""
        name = self.entry(name).spec.name
        self._tree.remove_attribute(*_place(name))
        del self._entries[name]

    def entry(self, name: str) -> SysctlEntry[Any]:
        """The registered sysctl of that name."""
        found = self._entries.get(canonical_name(name))
        if found is None:
            hint = did_you_mean(canonical_name(name), self._entries)
            raise TreeError(f"no sysctl {brief(name)!r}{hint}", errno=errno.ENOENT)
        return found

    def get(self, name: str) -> Value:
        """The present value."""
        value: Value = self.entry(name).value
        return value

    def set(self, name: str, value: Value, *, writer: str = "kernel") -> None:
        """Writes a value, for the record in the name of ``writer``.  EACCES if it is read-only."""
        entry = self.entry(name)
        if entry.spec.read_only:
            raise TreeError(f"{ROOT}/{entry.spec.name}: is read-only", errno=errno.EACCES)
        self._commit(entry, entry.spec.check(value), writer)

    def names(self) -> list[str]:
        """All names with slashes, sorted."""
        return sorted(self._entries)

    def snapshot(self) -> dict[str, SysctlState]:
        """Value, default, last writer and number of writes of every sysctl, by name."""
        return {
            entry.spec.name: SysctlState(entry.value, entry.spec.default, entry.writer, entry.writes) for entry in self
        }

    def _commit(self, entry: SysctlEntry[V], value: V, writer: str) -> None:
        before, spec = entry.value, entry.spec
        entry.value = value
        if value != before and spec.on_change is not None:
            try:
                spec.on_change(value)
            except BaseException:
                entry.value = before
                raise
        entry.writer, entry.writes = writer, entry.writes + 1
        if value != before and self._entries.get(spec.name) is entry:
            self._tree.notify(f"{ROOT}/{spec.name}")
        self.on_write(entry, before)


def _place(name: str) -> tuple[str, str]:
    folder, _, leaf = f"{ROOT}/{name}".rpartition("/")
    return folder, leaf


def _check_spec(spec: Sysctl[V]) -> None:
    """The default must pass its own check, so that the range cannot be empty either."""
    default: object = spec.default
    good = isinstance(default, int | str)
    if isinstance(default, tuple):
        good = 0 < len(default) <= TUPLE_MAX
    if not good:
        what = f"default is a {type(default).__name__}"
        expected = f"int, bool, str or a tuple of 1 to {TUPLE_MAX} ints"
        raise TreeError(f"{spec.name}: {what}, expected {expected}", errno=errno.EINVAL)
    spec.check(default)


def _integer(text: str) -> int:
    return int(text, 16 if "x" in text.lower() else 10)


def _shown(value: object) -> str:
    """A value of any type for a message; huge numbers do not even convert."""
    try:
        return str(value)
    except Exception:
        return f"a {type(value).__name__}"
