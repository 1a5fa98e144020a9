from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk import limits
from uxk.core import lock as lock_module
from uxk.core.lock import LEASE_NS_MAX, Grant, LeaseLock, LockTable
from uxk.errors import ExtensionError
from uxk.uapi.ids import InstanceId, LockToken

A, B, C, D = (InstanceId(n) for n in (1, 2, 3, 4))


@contextmanager
def refused(number: int, *words: str) -> Iterator[None]:
    with pytest.raises(ExtensionError) as caught:
        yield
    assert caught.value.errno == number
    assert all(word in str(caught.value) for word in words)


def taken(grant: Grant | None) -> Grant:
    assert grant is not None
    return grant


def test_readers_share_and_a_writer_waits_for_them_all() -> None:
    lock = LeaseLock("map")
    one, two = taken(lock.acquire(A, False, 0, 100)), taken(lock.acquire(B, False, 5, 100))
    assert lock.acquire(C, True, 10, 50) is None
    assert lock.blockers(C) == (A, B)
    assert lock.release(A, one.token, 20) == []
    (grant,) = lock.release(B, two.token, 30)
    assert (grant.holder, grant.exclusive, grant.granted_ns, grant.expires_ns) == (C, True, 30, 80)
    assert one.token < two.token < grant.token
    assert lock.blockers(C) == ()


def test_a_reader_does_not_overtake_a_waiting_writer() -> None:
    lock = LeaseLock("map")
    first = taken(lock.acquire(A, False, 0, 100))
    assert lock.acquire(B, True, 1, 100) is None
    assert lock.try_acquire(C, False, 2, 100) is None
    assert lock.acquire(C, False, 2, 100) is None
    assert lock.acquire(D, False, 3, 100) is None
    assert [lock.blockers(each) for each in (B, C, D)] == [(A,), (B,), (B,)]
    (writer,) = lock.release(A, first.token, 10)
    assert lock.blockers(C) == (B,)
    assert [grant.holder for grant in lock.release(B, writer.token, 20)] == [C, D]


def test_readers_go_on_when_the_writer_before_them_gives_up() -> None:
    lock = LeaseLock("map")
    lock.acquire(A, False, 0, 100)
    lock.acquire(B, True, 1, 100)
    lock.acquire(C, False, 2, 100)
    assert [grant.holder for grant in lock.drop(B, 3)] == [C]
    assert lock.drop(B, 4) == []


def test_whoever_overstays_loses_the_lock_and_its_token_is_stale() -> None:
    lock = LeaseLock("map")
    grant = taken(lock.acquire(A, True, 0, 100))
    lock.acquire(B, True, 1, 40)
    assert lock.next_expiry_ns() == 100
    assert lock.expire(99) == ([], [])
    with refused(errno.ESTALE, "token 1", "100 ns"):
        lock.release(A, grant.token, 100)
    with refused(errno.ESTALE):
        lock.renew(A, grant.token, 100, 50)
    evicted, granted = lock.expire(120)
    assert evicted == [grant]
    assert [(each.holder, each.expires_ns) for each in granted] == [(B, 160)]
    for _ in range(2):
        with refused(errno.ESTALE, "'map'", "instance 1", "token 1"):
            lock.release(A, grant.token, 121)
    again = lock.acquire(A, True, 122, 10)
    assert again is None
    with refused(errno.ESTALE):
        lock.release(A, grant.token, 123)
    assert lock.statistics().evictions == 1


def test_renewal_keeps_the_token() -> None:
    lock = LeaseLock("map")
    grant = taken(lock.acquire(A, True, 0, 100))
    renewed = lock.renew(A, grant.token, 90, 100)
    assert (renewed.token, renewed.granted_ns, renewed.expires_ns) == (grant.token, 0, 190)
    assert lock.expire(150) == ([], [])
    assert lock.release(A, grant.token, 189) == []
    assert lock.idle


def test_the_wait_edges_of_a_long_queue_are_few() -> None:
    lock = LeaseLock("map")
    for number in range(limits.LOCK_WAITERS_MAX):
        lock.acquire(InstanceId(number), number % 3 == 0, 0)
    assert len(lock.wait_edges()) <= 2 * limits.LOCK_WAITERS_MAX
    assert lock.wait_edges()[:5] == [(1, 0), (2, 0), (3, 1), (3, 2), (4, 3)]


def test_misuse_is_refused_and_changes_nothing() -> None:
    lock = LeaseLock("map")
    grant = taken(lock.acquire(A, False, 0))
    assert grant.expires_ns == limits.LEASE_NS_DEFAULT
    with refused(errno.EDEADLK, "instance 1", "'map'"):
        lock.acquire(A, False, 1)
    with refused(errno.EDEADLK):
        lock.try_acquire(A, True, 1)
    lock.acquire(B, True, 1)
    with refused(errno.EALREADY):
        lock.acquire(B, False, 2)
    for lease_ns in (-1, LEASE_NS_MAX + 1):
        with refused(errno.EINVAL, str(lease_ns)):
            lock.acquire(C, True, 2, lease_ns)
        with refused(errno.EINVAL):
            lock.renew(A, grant.token, 2, lease_ns)
    for token in (0, -1, 2, limits.I64_MAX):
        with refused(errno.EINVAL, "never issued"):
            lock.release(A, LockToken(token), 3)
    with refused(errno.EPERM):
        lock.release(C, grant.token, 3)
    assert lock.holders() == [grant]
    assert [waiter.holder for waiter in lock.waiters()] == [B]


def test_waiters_and_readers_are_bounded() -> None:
    lock = LeaseLock("map")
    for number in range(limits.LOCK_WAITERS_MAX):
        assert lock.acquire(InstanceId(number), False, 0)
    with refused(errno.EAGAIN, str(limits.LOCK_WAITERS_MAX)):
        lock.acquire(InstanceId(5000), False, 0)
    for number in range(limits.LOCK_WAITERS_MAX):
        assert lock.acquire(InstanceId(10_000 + number), True, 0) is None
    with refused(errno.EAGAIN):
        lock.acquire(InstanceId(5000), True, 0)
    assert lock.statistics()[:2] == (limits.LOCK_WAITERS_MAX, limits.LOCK_WAITERS_MAX)


def test_a_table_makes_locks_on_demand_and_forgets_them_but_never_repeats_a_token() -> None:
    table = LockTable()
    first = taken(table.acquire("map", A, True, 0, 100))
    assert table.release("map", A, first.token, 1) == []
    assert len(table) == 0
    with refused(errno.ESTALE, "'map'"):
        table.release("map", A, first.token, 2)
    with refused(errno.EINVAL):
        table.renew("map", A, LockToken(9), 2)
    second = taken(table.try_acquire("map", A, True, 3, 100))
    assert second.token > first.token
    with refused(errno.ESTALE):
        table.release("map", A, first.token, 4)


def test_a_dead_holder_loses_all_its_locks_and_places() -> None:
    table = LockTable()
    table.acquire("a", A, True, 0, 100)
    table.acquire("b", B, True, 0, 100)
    assert table.acquire("b", A, True, 0, 100) is None
    assert table.acquire("a", B, True, 0, 100) is None
    assert table.names_of(A) == ["a", "b"]
    (grant,) = table.drop(A, 5)
    assert (grant.lock, grant.holder) == ("a", B)
    assert table.names_of(A) == []
    assert table.drop(B, 6, "a") == []
    assert table.names_of(B) == ["b"]
    assert table.drop(B, 6) == []
    assert table.drop(C, 6, "nowhere") == []
    assert table.statistics()[:3] == (0, 0, 0)
    assert table.next_expiry_ns() is None


def test_a_table_expires_in_order_and_grants_to_those_who_wait() -> None:
    table = LockTable()
    table.acquire("late", A, True, 0, 300)
    table.acquire("soon", B, True, 0, 100)
    renewed = taken(table.acquire("kept", C, True, 0, 50))
    table.renew("kept", C, renewed.token, 10, 500)
    table.acquire("soon", D, True, 1, 1000)
    assert table.next_expiry_ns() == 100
    evicted, granted = table.expire(400)
    assert [(each.lock, each.holder) for each in evicted] == [("soon", B), ("late", A)]
    assert [(each.lock, each.expires_ns) for each in granted] == [("soon", 1400)]
    assert [lock.name for lock in table.locks()] == ["soon", "kept"]
    assert table.next_expiry_ns() == 510


def test_renewing_for_ever_takes_no_memory() -> None:
    table = LockTable()
    grant = taken(table.acquire("map", A, True, 0, 100))
    for now_ns in range(1, 5000):
        table.renew("map", A, grant.token, now_ns, 100)
    assert len(table._due) <= 70
    assert table.next_expiry_ns() == 5099


def test_a_refused_request_leaves_no_lock_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    table = LockTable()
    with refused(errno.EINVAL):
        table.acquire("map", A, True, 0, -5)
    assert len(table) == 0
    for name in ("", "x" * (limits.PATH_MAX_BYTES + 1)):
        with refused(errno.ENAMETOOLONG):
            table.acquire(name, A, True, 0)
    monkeypatch.setattr(lock_module, "LOCKS_MAX", 1)
    table.acquire("one", A, True, 0)
    with refused(errno.ENOSPC):
        table.acquire("two", A, True, 0)
    assert table.names_of(A) == ["one"]


def closure(edges: list[tuple[InstanceId, InstanceId]]) -> set[tuple[InstanceId, InstanceId]]:
    reach = set(edges)
    for middle in range(6):
        reach |= {(a, d) for a, b in reach if b == middle for c, d in reach if c == middle}
    return reach


HOLDER = st.sampled_from([A, B, C, D, InstanceId(5)])
NAME = st.sampled_from(["x", "y"])


class LockMachine(RuleBasedStateMachine):
    """Two locks, five instances; the model is the queue in order of arrival."""

    @initialize()
    def start(self) -> None:
        self.table = LockTable()
        self.now_ns = 0
        self.held: dict[str, dict[InstanceId, Grant]] = {"x": {}, "y": {}}
        self.queue: dict[str, list[tuple[InstanceId, bool]]] = {"x": [], "y": []}
        self.last_token = 0

    def _granted(self, name: str, grants: list[Grant]) -> None:
        """Whoever is granted was at the head of the queue; nobody who could be is forgotten."""
        for grant in grants:
            assert grant.lock == name
            assert self.queue[name].pop(0) == (grant.holder, grant.exclusive)
            self._hold(name, grant)
        if self.queue[name]:
            _, exclusive = self.queue[name][0]
            held = self.held[name].values()
            assert held, "a lost waiter"
            assert exclusive or any(grant.exclusive for grant in held), "a reader that could go on"

    def _hold(self, name: str, grant: Grant) -> None:
        assert grant.expires_ns > self.now_ns
        self.held[name][grant.holder] = grant

    def _tokens(self, grants: list[Grant]) -> list[Grant]:
        """Tokens grow with every grant, whatever the lock."""
        for grant in grants:
            assert grant.token > self.last_token
            self.last_token = grant.token
        return grants

    @rule(name=NAME, holder=HOLDER, exclusive=st.booleans(), lease_ns=st.integers(1, 30), queue=st.booleans())
    def acquire(self, name: str, holder: InstanceId, exclusive: bool, lease_ns: int, queue: bool) -> None:
        take = self.table.acquire if queue else self.table.try_acquire
        if holder in self.held[name] or any(holder == each for each, _ in self.queue[name]):
            with refused(errno.EDEADLK if holder in self.held[name] else errno.EALREADY):
                take(name, holder, exclusive, self.now_ns, lease_ns)
            return
        grant = take(name, holder, exclusive, self.now_ns, lease_ns)
        if grant is not None:
            assert not self.queue[name], "overtook a waiter"
            self._hold(name, *self._tokens([grant]))
        elif queue:
            self.queue[name].append((holder, exclusive))
            self._granted(name, [])

    @rule(name=NAME, holder=HOLDER, renew=st.booleans())
    def release_or_renew(self, name: str, holder: InstanceId, renew: bool) -> None:
        grant = self.held[name].get(holder)
        if grant is None:
            with pytest.raises(ExtensionError):
                self.table.release(name, holder, LockToken(self.last_token), self.now_ns)
        elif renew:
            self.held[name][holder] = self.table.renew(name, holder, grant.token, self.now_ns, 20)
        else:
            granted = self._tokens(self.table.release(name, holder, grant.token, self.now_ns))
            del self.held[name][holder]
            self._granted(name, granted)

    @rule(delta_ns=st.integers(1, 40))
    def wait(self, delta_ns: int) -> None:
        self.now_ns += delta_ns
        before = {(name, holder): grant for name in self.held for holder, grant in self.held[name].items()}
        over = {key for key, grant in before.items() if grant.expires_ns <= self.now_ns}
        for key in sorted(over):
            with refused(errno.ESTALE):
                self.table.release(*key, before[key].token, self.now_ns)
        evicted, granted = self.table.expire(self.now_ns)
        assert {(each.lock, each.holder) for each in evicted} == over
        self._tokens(granted)
        for name, holder in over:
            del self.held[name][holder]
        for name in self.held:
            self._granted(name, [grant for grant in granted if grant.lock == name])

    @rule(holder=HOLDER, name=st.none() | NAME)
    def drop(self, holder: InstanceId, name: str | None) -> None:
        granted = self._tokens(self.table.drop(holder, self.now_ns, name))
        for each in self.held if name is None else [name]:
            self.held[each].pop(holder, None)
            self.queue[each] = [waiter for waiter in self.queue[each] if waiter[0] != holder]
            self._granted(each, [grant for grant in granted if grant.lock == each])

    @invariant()
    def never_a_writer_beside_another(self) -> None:
        for name, held in self.held.items():
            lock = self.table.get(name)
            assert (lock.holders() if lock else []) == list(held.values())
            assert [(w.holder, w.exclusive) for w in (lock.waiters() if lock else [])] == self.queue[name]
            assert len(held) <= 1 or not any(grant.exclusive for grant in held.values())
            assert (lock is None) == (not held and not self.queue[name])

    @invariant()
    def every_waiter_is_blocked_by_somebody_before_it(self) -> None:
        for name, queue in self.queue.items():
            lock = self.table.get(name)
            for place, (holder, exclusive) in enumerate(queue):
                assert lock is not None
                before = [(each, grant.exclusive) for each, grant in self.held[name].items()] + queue[:place]
                expected = tuple(each for each, writes in before if exclusive or writes)
                assert lock.blockers(holder) == expected
                assert expected

    @invariant()
    def the_wait_edges_reach_what_the_blockers_reach(self) -> None:
        for lock in self.table.locks():
            full = [(waiter.holder, other) for waiter in lock.waiters() for other in lock.blockers(waiter.holder)]
            assert set(lock.wait_edges()) <= set(full)
            assert closure(lock.wait_edges()) == closure(full)

    @invariant()
    def the_next_expiry_is_the_first_of_all(self) -> None:
        ends = [grant.expires_ns for held in self.held.values() for grant in held.values()]
        assert self.table.next_expiry_ns() == min(ends, default=None)
        assert self.table.statistics().held == len(ends)

    def teardown(self) -> None:
        """All leases end, and everybody who waits gets its turn, with time alone."""
        if not hasattr(self, "table"):
            return
        waiting = {(name, holder) for name in self.queue for holder, _ in self.queue[name]}
        while (due_ns := self.table.next_expiry_ns()) is not None:
            assert due_ns > self.now_ns
            self.now_ns = due_ns
            _, granted = self.table.expire(due_ns)
            waiting -= {(grant.lock, grant.holder) for grant in granted}
        assert not waiting
        assert self.table.statistics()[:3] == (0, 0, 0)


TestLock = LockMachine.TestCase
