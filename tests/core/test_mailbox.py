from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk.core.mailbox import Mailbox
from uxk.uapi.entries import Hint


def hint(payload: bytes = b"good", *, generation: int = 0, ttl_ns: int = 100) -> Hint:
    return Hint(1, "site", generation, ttl_ns, payload)


def refuse_bad(payload: bytes) -> str:
    return "bad" if payload.startswith(b"bad") else ""


def test_the_newest_hint_wins_and_is_taken_once() -> None:
    box = Mailbox("site", refuse_bad)
    assert box.offer(1, hint(b"old"), 0) == box.offer(2, hint(b"new"), 0) == ""
    taken = box.take(0)
    assert taken is not None and taken.payload == b"new"
    assert box.take(0) is None
    assert (box.taken, box.rejects) == (1, {})


def test_a_refused_hint_does_not_push_out_a_good_one() -> None:
    box = Mailbox("site", refuse_bad)
    box.offer(1, hint(), 0)
    assert box.offer(1, hint(b"bad"), 0) == "bad"
    assert box.offer(1, hint(generation=1), 0) == "stale_generation"
    assert box.take(0) is not None
    assert box.rejects == {"bad": 1, "stale_generation": 1}


def test_it_is_checked_again_against_the_state_of_the_moment() -> None:
    forbidden: set[bytes] = set()
    box = Mailbox("site", lambda payload: "out_of_range" if payload in forbidden else "")
    box.offer(1, hint(b"x"), 0)
    forbidden.add(b"x")
    assert box.take(0) is None
    assert box.rejects == {"out_of_range": 1}


class MailboxMachine(RuleBasedStateMachine):
    """Beside a model that remembers one hint, its sender and its end."""

    @initialize()
    def begin(self) -> None:
        self.box = Mailbox("site", refuse_bad)
        self.now_ns = self.generation = self.taken = 0
        self.rejects: dict[str, int] = {}
        self.kept: tuple[Hint, int, int] | None = None

    def refused(self, reason: str) -> str:
        self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return reason

    @rule(
        sender=st.integers(1, 3), payload=st.sampled_from([b"good", b"bad", b""]),
        offset=st.integers(-1, 1), ttl_ns=st.integers(0, 20),
    )  # fmt: skip
    def offer(self, sender: int, payload: bytes, offset: int, ttl_ns: int) -> None:
        offered = hint(payload, generation=max(0, self.generation + offset), ttl_ns=ttl_ns)
        if offered.generation != self.generation:
            expected = self.refused("stale_generation")
        elif payload == b"bad":
            expected = self.refused("bad")
        else:
            expected, self.kept = "", (offered, sender, self.now_ns + ttl_ns)
        assert self.box.offer(sender, offered, self.now_ns) == expected

    @rule()
    def take(self) -> None:
        kept, self.kept = self.kept, None
        if kept is None:
            assert self.box.take(self.now_ns) is None
        elif kept[0].generation != self.generation:
            self.refused("stale_generation")
            assert self.box.take(self.now_ns) is None
        elif self.now_ns > kept[2]:
            self.refused("expired")
            assert self.box.take(self.now_ns) is None
        else:
            assert self.box.take(self.now_ns) is kept[0]
            self.taken += 1

    @rule(step_ns=st.integers(0, 15))
    def wait(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @rule()
    def advance(self) -> None:
        self.generation += 1
        assert self.box.advance() == self.generation

    @rule(sender=st.integers(1, 3))
    def forget(self, sender: int) -> None:
        self.box.forget(sender)
        if self.kept is not None and self.kept[1] == sender:
            self.kept = None

    @invariant()
    def same(self) -> None:
        assert (self.box.rejects, self.box.taken) == (self.rejects, self.taken)


TestMailbox = MailboxMachine.TestCase
