"""Locks with leases that the kernel mediates (R9): readers/writer, first come first served, fenced.

Whoever dies or overstays loses the lock; the token, which grows with every grant, tells an owner from a former
one (Chubby's sequencers).  Time passes only in :meth:`LeaseLock.expire`: call it at ``next_expiry_ns()``.
"""

from __future__ import annotations

import errno
import heapq
from typing import Final, NamedTuple

from uxk import limits
from uxk.errors import ExtensionError
from uxk.uapi.ids import InstanceId, LockToken

LEASE_NS_MAX: Final = 3600 * limits.NS_PER_S
"""Longest lease: a lock must come back by itself within a run."""
LOCKS_MAX: Final = limits.QUEUE_DEPTH_MAX
"""Locks in use at once: as many as the deepest queue can ask for."""
_SLACK: Final = 64


class Grant(NamedTuple):
    """A lock held: valid while ``now_ns < expires_ns``."""

    lock: str
    holder: InstanceId
    token: LockToken
    exclusive: bool
    granted_ns: int
    expires_ns: int


class Waiter(NamedTuple):
    """A place in the queue; the lease begins when it is granted."""

    holder: InstanceId
    exclusive: bool
    lease_ns: int
    since_ns: int


class LockStatistics(NamedTuple):
    """Counts of one lock; the first three are of now, the rest since it was made."""

    holders: int
    waiters: int
    exclusive: bool
    grants: int
    waits: int
    evictions: int


class TokenSource:
    """Fencing tokens: shared by all locks of a table, so that a lock made anew never repeats one."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> LockToken:
        """A token greater than all before."""
        self.last += 1
        return LockToken(self.last)


class LeaseLock:
    """One readers/writer lock.

    Strictly in order of arrival: a reader that comes after a waiting writer waits behind it, so no writer
    starves.  Errors are :class:`ExtensionError`: EDEADLK (already held by the caller), EALREADY (already
    waiting), EAGAIN (too many waiters or readers), EINVAL, ESTALE (the lease is over), EPERM (another's token).
    """

    __slots__ = ("_evictions", "_grants", "_held", "_queue", "_tokens", "_waits", "name")

    def __init__(self, name: str, tokens: TokenSource | None = None) -> None:
        self.name = name
        self._tokens = TokenSource() if tokens is None else tokens
        self._held: dict[InstanceId, Grant] = {}
        self._queue: dict[InstanceId, Waiter] = {}
        self._grants = self._waits = self._evictions = 0

    @property
    def idle(self) -> bool:
        """Nobody holds it or waits for it."""
        return not self._held and not self._queue

    # --- taking ---

    def acquire(self, holder: InstanceId, exclusive: bool, now_ns: int, lease_ns: int = 0) -> Grant | None:
        """Takes the lock for ``lease_ns`` (0: ``LEASE_NS_DEFAULT``), or queues and returns None.

        A queued holder's grant is returned later, by what made room for it.
        """
        grant = self.try_acquire(holder, exclusive, now_ns, lease_ns)
        if grant is not None:
            return grant
        if len(self._queue) >= limits.LOCK_WAITERS_MAX:
            raise self._error(holder, f"{len(self._queue)} wait already, the most there may be", errno.EAGAIN)
        self._queue[holder] = Waiter(holder, exclusive, self._lease(holder, lease_ns), now_ns)
        self._waits += 1
        return None

    def try_acquire(self, holder: InstanceId, exclusive: bool, now_ns: int, lease_ns: int = 0) -> Grant | None:
        """Takes the lock if that is possible at once and overtakes nobody; never queues."""
        if holder in self._held:
            raise self._error(holder, "holds it already; locks are not recursive", errno.EDEADLK)
        if holder in self._queue:
            raise self._error(holder, "waits for it already", errno.EALREADY)
        lease_ns = self._lease(holder, lease_ns)
        if self._queue or not self._admits(exclusive):
            return None
        if len(self._held) >= limits.LOCK_WAITERS_MAX:
            raise self._error(holder, f"{len(self._held)} read already, the most there may be", errno.EAGAIN)
        return self._grant(Waiter(holder, exclusive, lease_ns, now_ns), now_ns)

    # --- giving back ---

    def release(self, holder: InstanceId, token: LockToken, now_ns: int) -> list[Grant]:
        """Gives the lock back; returns what is granted to waiters by that.

        ESTALE when the lease has run out, even if nobody was waiting: what was done since was not protected.
        """
        self._valid(holder, token, now_ns)
        del self._held[holder]
        return self._admit(now_ns)

    def renew(self, holder: InstanceId, token: LockToken, now_ns: int, lease_ns: int = 0) -> Grant:
        """A new lease from now on, with the same token."""
        grant = self._valid(holder, token, now_ns)
        expires_ns = now_ns + self._lease(holder, lease_ns)
        renewed = self._held[holder] = grant._replace(expires_ns=expires_ns)
        return renewed

    def expire(self, now_ns: int) -> tuple[list[Grant], list[Grant]]:
        """Evicts those whose lease is over: ``(evicted, newly granted)``, each in order of arrival."""
        evicted = [grant for grant in self._held.values() if grant.expires_ns <= now_ns]
        for grant in evicted:
            del self._held[grant.holder]
        self._evictions += len(evicted)
        return evicted, self._admit(now_ns)

    def drop(self, holder: InstanceId, now_ns: int) -> list[Grant]:
        """The holder died or no longer waits: takes back its grant or place; returns what is granted by that."""
        self._held.pop(holder, None)
        self._queue.pop(holder, None)
        return self._admit(now_ns)

    # --- looking ---

    def next_expiry_ns(self) -> int | None:
        """When the first lease runs out; None if nobody holds the lock."""
        return min((grant.expires_ns for grant in self._held.values()), default=None)

    def grant_of(self, holder: InstanceId) -> Grant | None:
        """What ``holder`` has of it."""
        return self._held.get(holder)

    def holders(self) -> list[Grant]:
        """Who holds it, in order of grant."""
        return list(self._held.values())

    def waiters(self) -> list[Waiter]:
        """Who waits, in order of arrival."""
        return list(self._queue.values())

    def blockers(self, waiter: InstanceId) -> tuple[InstanceId, ...]:
        """All who must let go before ``waiter`` gets the lock: holders, then earlier waiters it cannot share with.

        A writer waits for everybody before it; a reader only for writers.  ``()`` for one who does not wait.
        """
        place = self._queue.get(waiter)
        if place is None:
            return ()
        found = [grant.holder for grant in self._held.values() if place.exclusive or grant.exclusive]
        for other in self._queue.values():
            if other is place:
                break
            if place.exclusive or other.exclusive:
                found.append(other.holder)
        return tuple(found)

    def wait_edges(self) -> list[tuple[InstanceId, InstanceId]]:
        """All waits as ``(waiter, who goes first)``, for the wait-for graph: without those that follow from others.

        From it one reaches the same as from :meth:`blockers`, but it is linear in holders and waiters.
        """
        edges: list[tuple[InstanceId, InstanceId]] = []
        ahead = list(self._held)  # the group just before: one writer, or readers that go together
        ahead_writes = any(grant.exclusive for grant in self._held.values())
        barrier: list[InstanceId] = []
        for waiter in self._queue.values():
            if waiter.exclusive or ahead_writes:
                barrier, ahead = ahead, []
                ahead_writes = waiter.exclusive
            edges += [(waiter.holder, other) for other in barrier]
            ahead.append(waiter.holder)
        return edges

    def statistics(self) -> LockStatistics:
        """A consistent copy of the counters."""
        exclusive = any(grant.exclusive for grant in self._held.values())
        return LockStatistics(
            len(self._held), len(self._queue), exclusive, self._grants, self._waits, self._evictions
        )  # fmt: skip

    # --- inside ---

    def _admits(self, exclusive: bool) -> bool:
        first = next(iter(self._held.values()), None)
        return first is None or not (exclusive or first.exclusive)

    def _admit(self, now_ns: int) -> list[Grant]:
        """Grants to the head of the queue as long as it fits: one writer, or readers up to the next writer."""
        granted: list[Grant] = []
        while (head := next(iter(self._queue.values()), None)) is not None and self._admits(head.exclusive):
            del self._queue[head.holder]
            granted.append(self._grant(head, now_ns))
        return granted

    def _grant(self, waiter: Waiter, now_ns: int) -> Grant:
        self._grants += 1
        grant = self._held[waiter.holder] = Grant(
            self.name, waiter.holder, self._tokens.next(), waiter.exclusive, now_ns, now_ns + waiter.lease_ns
        )
        return grant

    def _lease(self, holder: InstanceId, lease_ns: int) -> int:
        if not 0 <= lease_ns <= LEASE_NS_MAX:
            raise self._error(holder, f"lease of {lease_ns} ns, expected 0..{LEASE_NS_MAX}", errno.EINVAL)
        return lease_ns or limits.LEASE_NS_DEFAULT

    def _valid(self, holder: InstanceId, token: LockToken, now_ns: int) -> Grant:
        grant = self._held.get(holder)
        if grant is None or grant.token != token:
            raise token_error(self.name, holder, token, self._tokens, self._held)
        if grant.expires_ns <= now_ns:
            raise self._error(holder, f"the lease of token {token} ran out at {grant.expires_ns} ns", errno.ESTALE)
        return grant

    def _error(self, holder: InstanceId, what: str, number: int) -> ExtensionError:
        return ExtensionError(f"lock {self.name!r}: instance {holder}: {what}", errno=number)


def token_error(
    name: str, holder: InstanceId, token: LockToken, tokens: TokenSource, held: dict[InstanceId, Grant]
) -> ExtensionError:
    """Why ``token`` is no valid one of ``holder``'s."""
    place = f"lock {name!r}: instance {holder}"
    if not 1 <= token <= tokens.last:
        return ExtensionError(f"{place}: token {token} was never issued", errno=errno.EINVAL)
    if any(grant.token == token for grant in held.values()):
        return ExtensionError(f"{place}: token {token} is another's", errno=errno.EPERM)
    return ExtensionError(f"{place}: the lease of token {token} is over", errno=errno.ESTALE)


class LockTableStatistics(NamedTuple):
    """Counts of a table; the first three are of now, the rest since it was made."""

    locks: int
    held: int
    holders: int
    grants: int
    evictions: int


class LockTable:
    """All locks of a kernel, by name: each is made when first asked for and removed when nobody uses it."""

    __slots__ = ("_by_holder", "_due", "_evictions", "_granted", "_locks", "_tokens")

    def __init__(self) -> None:
        self._locks: dict[str, LeaseLock] = {}
        self._tokens = TokenSource()
        self._by_holder: dict[InstanceId, dict[str, None]] = {}
        self._granted: dict[LockToken, Grant] = {}
        self._due: list[tuple[int, LockToken]] = []
        """Heap of ends of leases; entries that no longer are true stay until they surface or are too many."""
        self._evictions = 0

    def __len__(self) -> int:
        return len(self._locks)

    def acquire(
        self, name: str, holder: InstanceId, exclusive: bool, now_ns: int, lease_ns: int = 0
    ) -> Grant | None:  # fmt: skip
        """See :meth:`LeaseLock.acquire`.  Also ENOSPC for one lock too many, ENAMETOOLONG."""
        return self._take(name, holder, exclusive, now_ns, lease_ns, queue=True)

    def try_acquire(
        self, name: str, holder: InstanceId, exclusive: bool, now_ns: int, lease_ns: int = 0
    ) -> Grant | None:  # fmt: skip
        """See :meth:`LeaseLock.try_acquire`."""
        return self._take(name, holder, exclusive, now_ns, lease_ns, queue=False)

    def release(self, name: str, holder: InstanceId, token: LockToken, now_ns: int) -> list[Grant]:
        """See :meth:`LeaseLock.release`."""
        lock = self._locks.get(name)
        if lock is None:
            raise token_error(name, holder, token, self._tokens, {})
        granted = lock.release(holder, token, now_ns)
        self._left(holder, name, token)
        return self._arrived(lock, granted)

    def renew(self, name: str, holder: InstanceId, token: LockToken, now_ns: int, lease_ns: int = 0) -> Grant:
        """See :meth:`LeaseLock.renew`."""
        lock = self._locks.get(name)
        if lock is None:
            raise token_error(name, holder, token, self._tokens, {})
        grant = lock.renew(holder, token, now_ns, lease_ns)
        self._arrived(lock, [grant])
        return grant

    def expire(self, now_ns: int) -> tuple[list[Grant], list[Grant]]:
        """Ends all leases that are over: ``(evicted, newly granted)``, in order of their ends."""
        evicted: list[Grant] = []
        granted: list[Grant] = []
        while (due_ns := self.next_expiry_ns()) is not None and due_ns <= now_ns:
            lock = self._locks[self._granted[self._due[0][1]].lock]
            out, new = lock.expire(now_ns)
            for grant in out:
                self._left(grant.holder, lock.name, grant.token)
            evicted += out
            granted += self._arrived(lock, new)
        self._evictions += len(evicted)
        return evicted, granted

    def drop(self, holder: InstanceId, now_ns: int, name: str | None = None) -> list[Grant]:
        """Takes back all that ``holder`` has or waits for, or only its part in lock ``name``.

        Returns what is granted to others by that.  Never raises.
        """
        names = list(self._by_holder.get(holder, ())) if name is None else [name]
        granted: list[Grant] = []
        for each in names:
            lock = self._locks.get(each)
            if lock is not None:
                had = lock.grant_of(holder)
                new = lock.drop(holder, now_ns)
                self._left(holder, each, None if had is None else had.token)
                granted += self._arrived(lock, new)
        return granted

    def next_expiry_ns(self) -> int | None:
        """When the first lease of all runs out; None if nothing is held."""
        due = self._due
        while due:
            expires_ns, token = due[0]
            grant = self._granted.get(token)
            if grant is not None and grant.expires_ns == expires_ns:
                return expires_ns
            heapq.heappop(due)
        return None

    def get(self, name: str) -> LeaseLock | None:
        """The lock, to look at; None while nobody uses it."""
        return self._locks.get(name)

    def locks(self) -> list[LeaseLock]:
        """All locks in use, to look at; oldest first."""
        return list(self._locks.values())

    def names_of(self, holder: InstanceId) -> list[str]:
        """The locks that ``holder`` holds or waits for."""
        return list(self._by_holder.get(holder, ()))

    def statistics(self) -> LockTableStatistics:
        """A consistent copy of the counters."""
        return LockTableStatistics(
            len(self._locks), len(self._granted), len(self._by_holder), self._tokens.last, self._evictions
        )

    def _take(
        self, name: str, holder: InstanceId, exclusive: bool, now_ns: int, lease_ns: int, *, queue: bool
    ) -> Grant | None:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._make(name)
        try:
            take = lock.acquire if queue else lock.try_acquire
            grant = take(holder, exclusive, now_ns, lease_ns)
        finally:
            self._tidy(lock)
        if grant is not None:
            self._arrived(lock, [grant])
        if grant is not None or queue:
            self._by_holder.setdefault(holder, {})[name] = None
        return grant

    def _make(self, name: str) -> LeaseLock:
        if not 1 <= len(name) <= limits.PATH_MAX_BYTES:
            raise ExtensionError(
                f"lock name of {len(name)} characters, expected 1 to {limits.PATH_MAX_BYTES}", errno=errno.ENAMETOOLONG
            )
        if len(self._locks) >= LOCKS_MAX:
            raise ExtensionError(f"lock {name!r}: {LOCKS_MAX} locks are in use already", errno=errno.ENOSPC)
        lock = self._locks[name] = LeaseLock(name, self._tokens)
        return lock

    def _arrived(self, lock: LeaseLock, grants: list[Grant]) -> list[Grant]:
        for grant in grants:
            self._granted[grant.token] = grant
            heapq.heappush(self._due, (grant.expires_ns, grant.token))
        if len(self._due) > 2 * len(self._granted) + _SLACK:  # renewals leave dead entries behind
            self._due = [(grant.expires_ns, grant.token) for grant in self._granted.values()]
            heapq.heapify(self._due)
        self._tidy(lock)
        return grants

    def _left(self, holder: InstanceId, name: str, token: LockToken | None) -> None:
        if token is not None:
            del self._granted[token]
        names = self._by_holder.get(holder)
        if names is not None:
            names.pop(name, None)
            if not names:
                del self._by_holder[holder]

    def _tidy(self, lock: LeaseLock) -> None:
        if lock.idle:
            self._locks.pop(lock.name, None)
