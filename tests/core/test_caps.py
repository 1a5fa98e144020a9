from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from uxk import limits
from uxk.core.caps import HANDED_MAX, SPAN_BYTES, CapTable, covers
from uxk.errors import CapabilityError, UsageError
from uxk.uapi.ids import CapId, InstanceId
from uxk.uapi.rights import Rights

A, B, C = InstanceId(1), InstanceId(2), InstanceId(3)
RW = Rights.READ | Rights.WRITE


@contextmanager
def refused(number: int) -> Iterator[pytest.ExceptionInfo[CapabilityError]]:
    with pytest.raises(CapabilityError) as caught:
        yield caught
    assert caught.value.errno == number


def test_what_was_handed_over_is_known_until_it_is_revoked_and_what_was_lent_is_not() -> None:
    table = CapTable()
    mine = table.check(A, table.grant(A, "arena", "mem", Rights.ALL, length=100), "arena", RW)
    assert not table.handed(mine, B)
    lent = table.lend(A, mine.id, B, RW)
    assert (lent.holder, lent.start, lent.length) == (B, 0, 100) and not table.handed(mine, B)
    first, second = (table.derive(A, mine.id, B, RW, start=start) for start in (10, 20))
    assert [cap.id for cap in table.handed(mine, B)] == [second, first]  # the newest first
    assert not table.handed(mine, C)
    table.derive(A, mine.id, A, RW)
    assert not table.handed(mine, A)  # its own, narrowed
    table.revoke(second)
    assert [cap.id for cap in table.handed(mine, B)] == [first]
    table.revoke(first)
    assert not table.handed(mine, B)
    third = table.lookup(B, table.derive(A, mine.id, B, RW))
    assert [cap.id for cap in table.handed_to(B, "arena")] == [third.id] and table.giver(third) == A
    for _ in range(HANDED_MAX):
        fourth = table.derive(A, mine.id, B, RW)
    assert len(table.handed(mine, B)) == HANDED_MAX and table.handed(mine, B)[0].id == fourth
    table.revoke(mine.id)
    assert not table.alive(third) and not table.alive(lent) and not table.handed(mine, B)
    with refused(errno.ESTALE):
        table.lend(A, mine.id, B, RW)


def test_a_loan_needs_the_right_to_grant() -> None:
    table = CapTable()
    mine = table.grant(A, "arena", "mem", RW)
    with refused(errno.EACCES):
        table.lend(A, mine, B, Rights.READ)


def test_a_peek_counts_nothing_and_raises_nothing() -> None:
    table = CapTable()
    cap = table.grant(A, "device", "disk0", Rights.SUBMIT)
    found = table.peek(A, cap, "device", Rights.SUBMIT)
    assert found is not None and found.id == cap
    for holder, kind, right in ((B, "device", Rights.SUBMIT), (A, "lock", Rights.SUBMIT), (A, "device", Rights.READ)):
        assert table.peek(holder, cap, kind, right) is None
    assert table.peek(A, CapId(cap + 1), "device", Rights.SUBMIT) is None
    assert table.statistics().denied == 0
    assert table.find_exactly(A, "device", "disk0") is None  # a permission, not an open device
    opened = table.narrow(A, cap, "disk0", Rights.SUBMIT)
    assert table.find_exactly(A, "device", "disk0") == opened and table.find_exactly(B, "device", "disk0") is None


def test_a_grant_allows_what_it_says_and_nothing_else() -> None:
    table = CapTable()
    cap = table.grant(A, "arena", "mem", RW, start=4096, length=100)
    found = table.check(A, cap, "arena", RW, 0, 100)
    assert (found.start, found.length, found.target, found.rights) == (4096, 100, "mem", RW)
    assert table.check(A, cap, "arena", Rights.READ) is found
    for offset, length in ((0, 101), (100, 1), (-1, 1), (5, -1), (1 << 70, 0)):
        with refused(errno.EACCES):
            table.check(A, cap, "arena", Rights.READ, offset, length)
    with refused(errno.EACCES):
        table.check(A, cap, "arena", Rights.READ | Rights.SUBMIT)
    with refused(errno.EACCES):
        table.check(A, cap, "device", Rights.READ)
    assert table.statistics().denied == 7


def test_a_strangers_number_is_not_told_from_a_number_that_never_was() -> None:
    table = CapTable()
    theirs = table.grant(B, "device", "null0", RW)
    gone = table.grant(B, "device", "null0", RW)
    table.revoke(gone)
    messages = set()
    for number in (theirs, gone, CapId(0), CapId(-1), CapId(1), CapId(theirs + 5), CapId(limits.I64_MAX)):
        with refused(errno.EBADF) as caught:
            table.check(A, number, "device", Rights.READ)
        messages.add(str(caught.value).replace(f"capability {number}:", ""))
        with refused(errno.EBADF):
            table.derive(A, number, A, Rights.READ)
        with refused(errno.EBADF):
            table.narrow(A, number, "null0", Rights.READ)
        with refused(errno.EBADF):
            table.revoke_by(A, number)
    assert len(messages) == 1
    assert table.check(B, theirs, "device", RW)


def test_use_after_revoke_is_stale_even_after_the_holder_lost_everything() -> None:
    table = CapTable()
    caps = [table.grant(A, "lock", "x", Rights.LOCK) for _ in range(3)]
    assert table.revoke(caps[1]) == 1
    assert table.revoke(caps[1]) == 0
    assert table.revoke_holder(A) == 2
    assert table.revoke_holder(A) == 0
    for cap in caps:
        with refused(errno.ESTALE):
            table.check(A, cap, "lock", Rights.LOCK)
        with refused(errno.ESTALE):
            table.revoke_by(A, cap)
    assert table.statistics()[:2] == (0, 0)
    assert table.held(A) == []


def test_derivation_needs_grant_and_narrowing_does_not() -> None:
    table = CapTable()
    cap = table.grant(A, "device", "disk", RW, start=1000, length=500)
    with refused(errno.EACCES):
        table.derive(A, cap, B, Rights.READ)
    own = table.narrow(A, cap, "disk", Rights.READ, start=100, length=50)
    assert table.check(A, own, "device", Rights.READ, 49, 1).start == 1100
    strong = table.grant(A, "device", "disk", RW | Rights.GRANT, start=1000, length=500)
    part = table.derive(A, strong, B, RW | Rights.GRANT, start=100, length=300)
    rest = table.derive(B, part, C, Rights.READ, start=50)
    found = table.check(C, rest, "device", Rights.READ, 249, 1)
    assert (found.start, found.length, found.depth) == (1150, 250, 2)
    for start, length in ((0, 301), (300, 1), (-1, 5), (0, 0), (0, -3), (301, None)):
        with refused(errno.EACCES):
            table.derive(B, part, C, Rights.READ, start=start, length=length)
    with refused(errno.EACCES):
        table.derive(B, part, C, Rights.READ | Rights.IOCTL)
    assert table.revoke(strong) == 3
    with refused(errno.ESTALE):
        table.check(C, rest, "device", Rights.READ)


def test_a_giver_may_withdraw_what_it_gave_and_a_receiver_may_drop_it() -> None:
    table = CapTable()
    root = table.grant(A, "device", "disk", Rights.ALL)
    given = table.derive(A, root, B, Rights.ALL)
    further = table.derive(B, given, C, Rights.READ)
    with refused(errno.EBADF):
        table.revoke_by(C, given)
    assert table.revoke_by(A, further) == 1
    assert table.revoke_by(B, given) == 1
    assert table.check(A, root, "device", Rights.ALL)
    assert len(table) == 1


def test_nonsense_is_refused() -> None:
    table = CapTable()
    for start, length in ((-1, None), (0, 0), (5, -5), (SPAN_BYTES, None), (1, SPAN_BYTES)):
        with pytest.raises(UsageError, match="range"):
            table.grant(A, "device", "x", Rights.READ, start=start, length=length)
    for target in ("", "x" * (limits.PATH_MAX_BYTES + 1)):
        with pytest.raises(UsageError, match="target"):
            table.grant(A, "device", target, Rights.READ)
    cap = table.grant(A, "device", "x", Rights.ALL)
    for bits in (0, -1, 128, 1 << 40):
        with pytest.raises(UsageError, match="rights"):
            table.derive(A, cap, B, bits)  # type: ignore[arg-type]
    assert len(table) == 1


def test_what_is_put_aside_is_good_by_number_only() -> None:
    table = CapTable()
    old = table.grant(A, "lock", "*", Rights.LOCK)
    lent = table.grant(A, "arena", "loan", RW)
    memory = table.grant(A, "arena", "mem", Rights.ALL, length=8)
    handed = table.derive(A, memory, B, RW)
    table.set_aside(A, keep={lent})
    assert [cap.id for cap in table.held(A)] == [lent] and table.count(A) == 1
    assert table.find(A, "lock", "x", Rights.LOCK) is None
    assert table.is_aside(table.lookup(A, old)) and not table.is_aside(table.lookup(A, lent))
    new = table.grant(A, "arena", "mem", Rights.ALL, length=8)
    assert table.revoke_target("arena", "mem", holder=A) == 1 and table.lookup(A, memory) and table.lookup(B, handed)
    with refused(errno.ESTALE):
        table.lookup(A, new)
    new = table.grant(A, "lock", "*", Rights.LOCK)
    table.put_back(A)
    assert [cap.id for cap in table.held(A)] == [old, memory, lent, new], "what was there before comes first"
    table.revoke(new)
    table.set_aside(A)
    table.revoke(old)
    assert table.revoke_aside(A) == 3 and table.revoke_aside(A) == 0 and len(table) == 0
    assert table.statistics().holders == 0


def test_holders_and_chains_are_bounded() -> None:
    table = CapTable()
    cap = table.grant(A, "device", "x", Rights.ALL)
    for _ in range(limits.CAP_DEPTH_MAX):
        cap = table.derive(A, cap, A, Rights.ALL)
    with refused(errno.EMLINK):
        table.derive(A, cap, A, Rights.ALL)
    while table.count(A) < limits.CAPS_PER_HOLDER_MAX:
        table.grant(A, "device", "x", Rights.READ)
    with refused(errno.EMFILE):
        table.grant(A, "device", "x", Rights.READ)
    assert table.revoke_target("device", "x") == limits.CAPS_PER_HOLDER_MAX
    assert len(table) == 0


@pytest.mark.parametrize(
    ("pattern", "target", "expected"),
    [
        ("vm/*", "vm/swappiness", True), ("vm/*", "vm/a/b", True), ("vm/*", "vm", False),
        ("vm/*", "vm/*", True), ("vm/?", "vm/*", False), ("vm/*", "vm/?", False), ("*", "vm/[ab]", False),
        ("vm/*", "vm/../kernel/x", False), ("*", "..", False), ("vm/*", "vm/./x", False), ("vm/*", "vm/..x", True),
        ("null0", "null0", True), ("null0", "NULL0", False), ("null[0-3]", "null2", True),
        ("null[0-3]", "null7", False), ("*", "x" * 5000, False), ("vm/*", "xvm/y", False),
    ],
)  # fmt: skip
def test_patterns_cover_names_only(pattern: str, target: str, expected: bool) -> None:
    assert covers(pattern, target) is expected


def test_find_takes_the_oldest_that_suffices_and_narrow_makes_a_literal_of_a_pattern() -> None:
    table = CapTable()
    table.grant(A, "sysctl", "vm/*", Rights.READ)
    both = table.grant(A, "sysctl", "vm/*", RW)
    assert table.find(A, "sysctl", "vm/x", RW) == both
    assert table.find(A, "sysctl", "vm/*", RW) == both
    assert table.find(A, "sysctl", "net/x", Rights.READ) is None
    assert table.find(A, "sysfs", "vm/x", Rights.READ) is None
    assert table.find(B, "sysctl", "vm/x", Rights.READ) is None
    one = table.narrow(A, both, "vm/x", Rights.WRITE)
    assert table.check(A, one, "sysctl", Rights.WRITE).target == "vm/x"
    for wider in ("vm/y", "vm/*", "*", ""):
        with refused(errno.EACCES):
            table.narrow(A, one, wider, Rights.WRITE)
    assert table.revoke_target("sysctl", "vm/x") == 1
    assert table.find(A, "sysctl", "vm/x", RW) == both


HOLDERS = st.sampled_from([A, B, C, InstanceId(4)])
TARGETS = st.sampled_from(["vm/*", "vm/a", "vm/b", "vm/?", "*", "net"])
RIGHTS = st.integers(1, 127).map(Rights)
SIZE = 8
STARTS = st.integers(-1, SIZE)
LENGTHS = st.none() | st.integers(0, SIZE)
NAMES = ("vm/a", "vm/b", "vm/c", "net")
Atom = tuple[str, int, int]


class Model:
    """What one capability allows, as the set of single things: (name, right, byte)."""

    def __init__(self, holder: InstanceId, atoms: frozenset[Atom], parent: Model | None) -> None:
        self.holder = holder
        self.atoms = atoms
        self.parent = parent
        self.live = True

    def alive(self) -> bool:
        return self.live and (self.parent is None or self.parent.alive())


class AuthorityMachine(RuleBasedStateMachine):
    """No sequence of operations gives anybody more than the kernel granted."""

    caps: Bundle[CapId] = Bundle("caps")

    @initialize()
    def start(self) -> None:
        self.table = CapTable()
        self.models: dict[CapId, Model] = {}
        self.granted: set[Atom] = set()

    def _allowed(self, holder: InstanceId, cap: CapId, base: int) -> frozenset[Atom]:
        """What the table lets ``holder`` do with ``cap``, by trying everything."""
        try:
            seen = self.table.check(holder, cap, "k", Rights.NONE)
        except CapabilityError:
            return frozenset()
        names = [name for name in NAMES if covers(seen.target, name)]
        bits = [1 << n for n in range(7) if self._passes(holder, cap, Rights(1 << n), 0)]
        offsets = [n for n in range(SIZE + 2) if self._passes(holder, cap, Rights.NONE, n)]
        assert base == seen.start
        return frozenset((name, bit, base + n) for name in names for bit in bits for n in offsets if base + n < SIZE)

    def _passes(self, holder: InstanceId, cap: CapId, right: Rights, offset: int) -> bool:
        try:
            self.table.check(holder, cap, "k", right, offset, 1)
        except CapabilityError:
            return False
        return True

    @rule(target=caps, holder=HOLDERS, name=TARGETS, rights=RIGHTS, start=st.integers(0, SIZE - 1))
    def grant(self, holder: InstanceId, name: str, rights: Rights, start: int) -> CapId:
        cap = self.table.grant(holder, "k", name, rights, start=start, length=SIZE - start)
        atoms = self._allowed(holder, cap, start)
        assert {bit for _, bit, _ in atoms} <= {1 << n for n in range(7) if rights & (1 << n)}
        self.granted |= atoms
        self.models[cap] = Model(holder, atoms, None)
        return cap

    @rule(
        target=caps, cap=caps, holder=HOLDERS, to=HOLDERS, rights=RIGHTS, start=STARTS, length=LENGTHS,
        name=st.none() | TARGETS, own=st.booleans(),
    )  # fmt: skip
    def derive(
        self, cap: CapId, holder: InstanceId, to: InstanceId, rights: Rights, start: int, length: int | None,
        name: str | None, own: bool,
    ) -> CapId | MultipleResults[CapId]:  # fmt: skip
        parent = self.models[cap]
        try:
            if own:
                to = holder
                new = self.table.narrow(holder, cap, name or "vm/a", rights, start=start, length=length)
            else:
                new = self.table.derive(holder, cap, to, rights, start=start, length=length, target=name)
        except CapabilityError:
            return multiple()
        assert parent.alive()
        assert parent.holder == holder
        assert own or any(bit == Rights.GRANT for _, bit, _ in parent.atoms) or not parent.atoms
        atoms = self._allowed(to, new, self.table.held(to)[-1].start)
        assert atoms <= parent.atoms
        self.models[new] = Model(to, atoms, parent)
        return new

    @rule(cap=consumes(caps))
    def revoke(self, cap: CapId) -> None:
        before = sum(model.alive() for model in self.models.values())
        count = self.table.revoke(cap)
        self.models[cap].live = False
        assert count == before - sum(model.alive() for model in self.models.values())

    @rule(cap=caps, holder=HOLDERS)
    def revoke_by(self, cap: CapId, holder: InstanceId) -> None:
        model: Model | None = self.models[cap]
        alive = self.models[cap].alive()
        may = False
        while model is not None:
            may |= model.holder == holder
            model = model.parent
        try:
            self.table.revoke_by(holder, cap)
        except CapabilityError as exc:
            outcome = exc.errno
        else:
            outcome = 0
            self.models[cap].live = False
        dead = errno.ESTALE if self.models[cap].holder == holder else errno.EBADF
        assert outcome == (0 if alive and may else dead)

    @rule(holder=HOLDERS)
    def revoke_holder(self, holder: InstanceId) -> None:
        self.table.revoke_holder(holder)
        assert self.table.held(holder) == []
        for model in self.models.values():
            if model.holder == holder:
                model.live = False

    @rule(name=TARGETS)
    def revoke_target(self, name: str) -> None:
        doomed = [each.id for holder in (1, 2, 3, 4) for each in self.table.held(InstanceId(holder))
                  if each.target == name]  # fmt: skip
        self.table.revoke_target("k", name)
        for cap in doomed:
            self.models[cap].live = False

    @invariant()
    def live_is_what_the_model_says(self) -> None:
        live = {cap for cap, model in self.models.items() if model.alive()}
        assert {each.id for h in (1, 2, 3, 4) for each in self.table.held(InstanceId(h))} == live
        assert len(self.table) == len(live)
        statistics = self.table.statistics()
        assert statistics.granted + statistics.derived - statistics.revoked == len(live)
        for cap, model in self.models.items():
            if cap not in live:
                with refused(errno.ESTALE):
                    self.table.check(model.holder, cap, "k", Rights.NONE)
            else:
                assert self.table.check(model.holder, cap, "k", Rights.NONE).id == cap
                for other in (1, 2, 3, 4):
                    if other != model.holder:
                        with refused(errno.EBADF):
                            self.table.check(InstanceId(other), cap, "k", Rights.NONE)

    @invariant()
    def nobody_has_more_than_was_granted(self) -> None:
        for model in self.models.values():
            if model.alive():
                assert model.atoms <= self.granted


TestAuthority = AuthorityMachine.TestCase
