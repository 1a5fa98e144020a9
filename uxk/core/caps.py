"""Capabilities: who may do what with which object (seL4: CNode mint, delete, revoke; Fuchsia: handles).

A capability is a window on a target: rights and a byte range.  Offsets are counted from the start of the
window, so that the holder of a part sees it begin at 0; ``Capability.start`` is where it begins in the target.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from uxk import limits
from uxk.errors import CapabilityError, UsageError
from uxk.uapi.ids import CapId, InstanceId
from uxk.uapi.rights import Rights

SPAN_BYTES: Final = limits.I64_MAX
"""Size of a target whose length nobody has limited: what a signed 64-bit offset can address (Linux: loff_t)."""
HANDED_MAX: Final = 16
"""Derivations of one capability for one instance that are looked through for a registered buffer."""
_SERIAL_BITS: Final = 40
"""A number is holder and serial; 63 bits on the wire leave 2**23 instances and 2**40 grants in one boot."""


class Capability:
    """One capability; made, changed and deleted by :class:`CapTable` only."""

    __slots__ = (
        "_bits", "_children", "_handed", "_parent", "depth", "holder", "id", "kind", "length", "lent", "rights",
        "start", "target",
    )  # fmt: skip

    def __init__(
        self, cap: CapId, holder: InstanceId, kind: str, target: str, rights: Rights, start: int, length: int,
        parent: Capability | None,
    ) -> None:  # fmt: skip
        self.id = cap
        self.holder = holder
        self.kind = kind
        self.target = target
        """A name, or the ``fnmatch`` pattern of the names it covers."""
        self.rights = rights
        self.start = start
        """First byte in the target."""
        self.length = length
        """Bytes; at most ``SPAN_BYTES - start``, which means all there are."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.lent = False
        """Whether it is for one request only."""
        self._bits = int(rights)
        self._parent = parent
        self._children: dict[CapId, Capability] | None = None
        self._handed: dict[InstanceId, list[Capability]] | None = None
        """What its holder has given to others for good, for each the oldest first."""

    def __repr__(self) -> str:
        return f"<Capability {self.id} of instance {self.holder}: {self.kind}:{self.target} {self.rights!r}>"


class CapStatistics(NamedTuple):
    """Counts of a table; ``live`` is of now, the rest since it was made."""

    live: int
    holders: int
    granted: int
    derived: int
    revoked: int
    denied: int


def covers(pattern: str, target: str) -> bool:
    """Whether ``pattern`` is ``target`` or a pattern that matches this name; ``*`` matches ``/``, too.

    A pattern is never covered by a different one, and no name with a component ``.`` or ``..`` by any:
    either could name more than was granted.
    """
    if pattern == target:
        return True
    return _is_pattern(pattern) and _is_plain(target) and fnmatchcase(target, pattern)


class CapTable:
    """All capabilities of a kernel, by number.

    Numbers only grow, and contain their holder.  So one of the caller's own that is not there any more is known
    to have been revoked without a list of dead ones, and another's is never told from one that never was.
    """

    __slots__ = (
        "_aside", "_by_holder", "_by_target", "_caps", "_denied", "_derived", "_granted", "_revoked", "_serial",
        "on_delete",
    )  # fmt: skip

    def __init__(self) -> None:
        self._caps: dict[CapId, Capability] = {}
        self._by_holder: dict[InstanceId, dict[CapId, Capability]] = {}
        self._aside: dict[InstanceId, dict[CapId, Capability]] = {}
        """What instances have put aside: good by number, but nothing is found or revoked among it by holder."""
        self._by_target: dict[tuple[str, str], dict[CapId, Capability]] = {}
        self._serial = 0
        self._granted = self._derived = self._revoked = self._denied = 0
        self.on_delete: dict[str, Callable[[Capability], object]] = {}
        """By kind: told of every capability that ends, so that what it allowed can be ended, too."""

    def __len__(self) -> int:
        return len(self._caps)

    # --- making ---

    def grant(
        self, holder: InstanceId, kind: str, target: str, rights: Rights, *, start: int = 0, length: int | None = None
    ) -> CapId:
        """Makes a capability out of nothing: for the kernel only.

        ``target`` may be an ``fnmatch`` pattern.  ``length`` None: up to the end.  Raises :class:`UsageError`
        (EINVAL) for nonsense and :class:`CapabilityError` (EMFILE) if the holder has too many.
        """
        _check_target(target)
        end = SPAN_BYTES if length is None else start + length
        if not 0 <= start < end <= SPAN_BYTES:
            raise UsageError(f"grant {kind}:{target}: range {start}+{length} is empty or outside 0..{SPAN_BYTES}")
        cap = self._add(holder, kind, target, _checked_rights(rights), start, end - start, None)
        self._granted += 1
        return cap

    def derive(
        self, holder: InstanceId, cap: CapId, to: InstanceId, rights: Rights, *,
        start: int = 0, length: int | None = None, target: str | None = None,
    ) -> CapId:  # fmt: skip
        """Hands a part of ``cap`` to instance ``to``: never more rights, bytes or names.  Needs ``GRANT``.

        ``start`` counts from the start of ``cap``; ``length`` None: up to its end; ``target`` None: the same.
        Raises :class:`CapabilityError` as :meth:`check` does, and EMFILE if ``to`` holds too many, EMLINK for
        a chain deeper than ``CAP_DEPTH_MAX``; :class:`UsageError` (EINVAL) for no or unknown rights.
        """
        parent = self._grantable(holder, cap)
        made = self._derive(parent, to, rights, start, length, target)
        if to != holder:
            if parent._handed is None:
                parent._handed = {}
            parent._handed.setdefault(to, []).append(self._caps[made])
        return made

    def lend(self, holder: InstanceId, cap: CapId, to: InstanceId, rights: Rights) -> Capability:
        """As :meth:`derive`, all of it, for a while: :meth:`handed` does not know it."""
        made = self._caps[self._derive(self._grantable(holder, cap), to, rights, 0, None, None)]
        made.lent = True
        return made

    def _grantable(self, holder: InstanceId, cap: CapId) -> Capability:
        parent = self.lookup(holder, cap)
        if not parent._bits & _GRANT:
            raise self._deny(f"{parent!r}: deriving for others needs the right GRANT")
        return parent

    def narrow(
        self, holder: InstanceId, cap: CapId, target: str, rights: Rights, *, start: int = 0, length: int | None = None
    ) -> CapId:
        """A weaker capability for the holder itself; needs no ``GRANT``.  Otherwise as :meth:`derive`."""
        return self._derive(self.lookup(holder, cap), holder, rights, start, length, target)

    def _derive(
        self, parent: Capability, to: InstanceId, rights: Rights, start: int, length: int | None, target: str | None
    ) -> CapId:
        rights = _checked_rights(rights)
        if int(rights) & ~parent._bits:
            raise self._deny(f"{parent!r}: cannot give {rights!r}, expected a part of what it has")
        if length is None:
            length = parent.length - start
        if start < 0 or length <= 0 or start + length > parent.length:
            raise self._deny(f"{parent!r}: range {start}+{length} is empty or outside 0..{parent.length}")
        if target is None:
            target = parent.target
        elif not covers(parent.target, target):
            raise self._deny(f"{parent!r}: does not cover {target[: limits.NAME_MAX_BYTES]!r}")
        if parent.depth + 1 > limits.CAP_DEPTH_MAX:
            raise self._deny(f"{parent!r}: at most {limits.CAP_DEPTH_MAX} derivations in a chain", errno.EMLINK)
        cap = self._add(to, parent.kind, target, rights, parent.start + start, length, parent)
        self._derived += 1
        return cap

    def _add(
        self, holder: InstanceId, kind: str, target: str, rights: Rights, start: int, length: int,
        parent: Capability | None,
    ) -> CapId:  # fmt: skip
        held = self._by_holder.get(holder)
        if held is not None and len(held) >= limits.CAPS_PER_HOLDER_MAX:
            raise self._deny(
                f"instance {holder} holds {len(held)} capabilities, at most {limits.CAPS_PER_HOLDER_MAX}", errno.EMFILE
            )
        self._serial += 1
        cap = CapId(holder << _SERIAL_BITS | self._serial)
        made = Capability(cap, holder, kind, target, rights, start, length, parent)
        self._caps[cap] = made
        self._by_holder.setdefault(holder, {})[cap] = made
        self._by_target.setdefault((kind, target), {})[cap] = made
        if parent is not None:
            if parent._children is None:
                parent._children = {}
            parent._children[cap] = made
        return cap

    # --- using ---

    def check(
        self, holder: InstanceId, cap: CapId, kind: str, right: Rights, offset: int = 0, length: int = 0
    ) -> Capability:
        """The capability, if ``holder`` has it, it is of ``kind``, and allows ``right`` on those bytes.

        ``offset`` counts from the capability's start: add ``start`` of the result.  Raises
        :class:`CapabilityError`: EBADF for no capability of the caller's, ESTALE for one that was revoked,
        EACCES for another kind, a missing right, or bytes outside.
        """
        found = self._caps.get(cap)
        if found is None or found.holder != holder:
            raise self._unknown(holder, cap)
        if found.kind != kind:
            raise self._deny(f"{found!r}: expected a capability of kind {kind!r}")
        if int(right) & ~found._bits:
            raise self._deny(f"{found!r}: needs {right!r}")
        if offset < 0 or length < 0 or offset + length > found.length:
            raise self._deny(f"{found!r}: bytes {offset}+{length} are outside 0..{found.length}")
        return found

    def lookup(self, holder: InstanceId, cap: CapId) -> Capability:
        """The holder's capability of that number, whatever it is for.  EBADF or ESTALE as :meth:`check`."""
        found = self._caps.get(cap)
        if found is None or found.holder != holder:
            raise self._unknown(holder, cap)
        return found

    def peek(self, holder: InstanceId, cap: CapId, kind: str, right: Rights) -> Capability | None:
        """As :meth:`check` without bytes, but None, and nothing counted, where that would raise."""
        found = self._caps.get(cap)
        if found is None or found.holder != holder or found.kind != kind or right._value_ & ~found._bits:
            return None
        return found

    def alive(self, cap: Capability) -> bool:
        """Whether nobody has revoked it."""
        return cap.id in self._caps

    def handed(self, cap: Capability, to: InstanceId) -> Sequence[Capability]:
        """What was derived from ``cap`` for ``to`` and is not revoked: the newest first, :data:`HANDED_MAX` at most."""
        if cap._handed is None:
            return ()
        return cap._handed.get(to, [])[: -HANDED_MAX - 1 : -1]

    def handed_to(self, holder: InstanceId, kind: str) -> list[Capability]:
        """What others have given to an instance for good, of one kind; of each source as much as :meth:`handed`."""
        parents = {each.id: each for cap in self.held(holder) if (each := cap._parent) is not None and cap.kind == kind}
        return [cap for parent in parents.values() for cap in self.handed(parent, holder)]

    def giver(self, cap: Capability) -> InstanceId | None:
        """Who holds what a capability was derived from."""
        return None if cap._parent is None else cap._parent.holder

    def find(self, holder: InstanceId, kind: str, target: str, right: Rights) -> CapId | None:
        """The holder's oldest capability that covers ``target`` with all of ``right``; None if there is none."""
        bits = int(right)
        for cap, found in self._by_holder.get(holder, {}).items():
            if found.kind == kind and not bits & ~found._bits and covers(found.target, target):
                return cap
        return None

    def find_exactly(self, holder: InstanceId, kind: str, target: str) -> CapId | None:
        """The holder's oldest derived capability on exactly this target; None if there is none."""
        for cap, found in self._by_target.get((kind, target), {}).items():
            if found.holder == holder and found.depth:
                return cap
        return None

    def held(self, holder: InstanceId) -> list[Capability]:
        """What an instance holds, oldest first."""
        return list(self._by_holder.get(holder, {}).values())

    def holders(self, kind: str, target: str) -> list[InstanceId]:
        """Who has opened exactly this target: holders of derived capabilities, in order."""
        found = self._by_target.get((kind, target), {}).values()
        return list(dict.fromkeys(each.holder for each in found if each.depth))

    def count(self, holder: InstanceId) -> int:
        """How many an instance holds."""
        return len(self._by_holder.get(holder, ()))

    # --- revoking ---

    def revoke(self, cap: CapId) -> int:
        """Deletes a capability and everything derived from it; returns how many, 0 if it was gone already."""
        root = self._caps.get(cap)
        return 0 if root is None else self._delete(root)

    def revoke_by(self, holder: InstanceId, cap: CapId) -> int:
        """As :meth:`revoke`, on behalf of ``holder``: something it holds, or that was derived from that.

        Raises :class:`CapabilityError`: ESTALE for one of its own that is revoked already, else EBADF.
        """
        found = self._caps.get(cap)
        if found is None or not any(each.holder == holder for each in _lineage(found)):
            raise self._unknown(holder, cap)
        return self._delete(found)

    def revoke_holder(self, holder: InstanceId, *, keep: Collection[CapId] = ()) -> int:
        """Deletes all that an instance holds but ``keep``, and what it or others derived from that; how many."""
        count = 0
        for each in list(self._by_holder.get(holder, {}).values()):
            if each.id in self._caps and each.id not in keep:
                count += self._delete(each)
        return count

    def revoke_target(
        self, kind: str, target: str, *, derived_only: bool = False, holder: InstanceId | None = None
    ) -> int:
        """Deletes all capabilities on exactly this target (not those whose pattern covers it); how many.

        With ``derived_only``, what the kernel itself granted stays: the permission outlives the object.  With
        ``holder``, only those that it holds and has not put aside, and what was derived from them.
        """
        count = 0
        for each in list(self._by_target.get((kind, target), {}).values()):
            if holder is not None and (each.holder != holder or self.is_aside(each)):
                continue
            if each.id in self._caps and not (derived_only and each.depth == 0):
                count += self._delete(each)
        return count

    def _delete(self, root: Capability) -> int:
        parent = root._parent
        if parent is not None and parent._children is not None:
            del parent._children[root.id]
            handed = None if parent._handed is None else parent._handed.get(root.holder)
            if handed is not None and root in handed:
                handed.remove(root)
        doomed = [root]
        count = 0
        while doomed:
            each = doomed.pop()
            if each._children is not None:
                doomed.extend(each._children.values())
                each._children = None
            each._handed = None
            each._parent = None  # no cycle of references is left behind
            del self._caps[each.id]
            if each.kind in self.on_delete:
                self.on_delete[each.kind](each)
            for books in (self._by_holder, self._aside):
                held = books.get(each.holder)
                if held is not None and held.pop(each.id, None) is not None and not held:
                    del books[each.holder]
            key = (each.kind, each.target)
            alike = self._by_target[key]
            del alike[each.id]
            if not alike:
                del self._by_target[key]
            count += 1
        self._revoked += count
        return count

    # --- two builds of one instance ---

    def set_aside(self, holder: InstanceId, *, keep: Collection[CapId] = ()) -> None:
        """Puts away all that an instance holds but ``keep``: another build of it begins with what it is granted."""
        held = self._by_holder.pop(holder, {})
        self._aside[holder] = {cap: found for cap, found in held.items() if cap not in keep}
        kept = {cap: found for cap, found in held.items() if cap in keep}
        if kept:
            self._by_holder[holder] = kept

    def put_back(self, holder: InstanceId) -> None:
        """The instance holds again what it has put aside, before what it has got since."""
        held = {**self._aside.pop(holder, {}), **self._by_holder.get(holder, {})}
        if held:
            self._by_holder[holder] = held

    def is_aside(self, cap: Capability) -> bool:
        """Whether its holder has put it aside."""
        return cap.id in self._aside.get(cap.holder, ())

    def revoke_aside(self, holder: InstanceId) -> int:
        """Deletes what an instance has put aside, and what was derived from that; how many."""
        count = 0
        for each in list(self._aside.get(holder, {}).values()):
            if each.id in self._caps:
                count += self._delete(each)
        self._aside.pop(holder, None)
        return count

    # --- saying no ---

    def statistics(self) -> CapStatistics:
        """A consistent copy of the counters."""
        return CapStatistics(
            len(self._caps), len(self._by_holder), self._granted, self._derived, self._revoked, self._denied
        )

    def _unknown(self, holder: InstanceId, cap: CapId) -> CapabilityError:
        own = cap >> _SERIAL_BITS == holder and 0 < cap & ((1 << _SERIAL_BITS) - 1) <= self._serial
        if own and cap not in self._caps:
            return self._deny(f"capability {cap} of instance {holder} was revoked", errno.ESTALE)
        return self._deny(f"capability {cap}: instance {holder} holds none of that number", errno.EBADF)

    def _deny(self, message: str, number: int = errno.EACCES) -> CapabilityError:
        self._denied += 1
        return CapabilityError(message, errno=number)


_GRANT: Final = int(Rights.GRANT)


def _lineage(found: Capability) -> Iterator[Capability]:
    each: Capability | None = found
    while each is not None:
        yield each
        each = each._parent


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text or "[" in text


def _is_plain(target: str) -> bool:
    if len(target) > limits.PATH_MAX_BYTES or _is_pattern(target):
        return False
    return not any(name in (".", "..") for name in target.split("/"))


def _check_target(target: str) -> None:
    if not 1 <= len(target) <= limits.PATH_MAX_BYTES:
        raise UsageError(f"capability: target of {len(target)} characters, expected 1 to {limits.PATH_MAX_BYTES}")


def _checked_rights(rights: Rights) -> Rights:
    bits = int(rights)
    if not 0 < bits <= int(Rights.ALL):
        raise UsageError(f"rights {bits:#x}: expected at least one of {int(Rights.ALL):#x} and no others")
    return Rights(bits)
