"""Requests from bytes: however they are cut, and whatever they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uxk_nbd_server.memory import OWN_SLOTS, SLOT_BYTES, Pool
from uxk_nbd_server.receiver import IN_PLACE_MAX_BYTES, WINDOW_BYTES, Incoming, Receiver
from uxk_nbd_server.wire import REQUEST, REQUEST_MAGIC, REQUEST_MAX_BYTES, Cmd

POOL = Pool(memoryview(bytearray((OWN_SLOTS * 4 + REQUEST_MAX_BYTES // SLOT_BYTES) * SLOT_BYTES)), 4)

KINDS = st.sampled_from([*Cmd, 99])
PAYLOADS = st.one_of(
    st.integers(0, 40),
    st.integers(0, 5000),
    st.sampled_from([
        512, 4096, IN_PLACE_MAX_BYTES, IN_PLACE_MAX_BYTES + 1, SLOT_BYTES - 28, SLOT_BYTES, SLOT_BYTES + 1,
        3 * SLOT_BYTES + 77, IN_PLACE_MAX_BYTES - 1,
    ]),
)  # fmt: skip
REQUESTS = st.lists(st.tuples(KINDS, st.integers(0, 65535), st.integers(0, 2**64 - 1), PAYLOADS), max_size=6)
CUTS = st.lists(
    st.one_of(st.integers(1, 100), st.integers(1, 1 << 20), st.sampled_from([WINDOW_BYTES, 28, SLOT_BYTES])),
    max_size=40,
)


def payload_of(cookie: int, length: int) -> bytes:
    return (cookie.to_bytes(8, "big") * (length // 8 + 1))[:length]


def stream_of(requests: list[tuple[int, int, int, int]]) -> tuple[bytes, list[tuple[int, ...]]]:
    """The bytes of requests, and what should be understood of them."""
    out: list[bytes] = []
    expected: list[tuple[int, ...]] = []
    for kind, flags, cookie, length in requests:
        out.append(REQUEST.pack(REQUEST_MAGIC, flags, kind, cookie, cookie // 3, length))
        if kind == Cmd.WRITE:
            out.append(payload_of(cookie, length))
        expected.append((kind, flags, cookie, cookie // 3, length))
    return b"".join(out), expected


def settle(request: Incoming) -> tuple[int, ...]:
    """Checks a payload and lets go of it."""
    kind, flags, cookie, offset, length, pieces = request
    data = b"".join(slot.view[start : start + size] for slot, start, size in pieces)
    if kind == Cmd.WRITE:
        assert data == payload_of(cookie, length)
    else:
        assert not pieces
    for slot, _, _ in pieces:
        slot.release()
    return kind, flags, cookie, offset, length


class Session:
    """A receiver on a purse of its own; ``hold`` delays letting go of payloads, as a slow device does."""

    def __init__(self, *, hold: int = 0, most: int = 3) -> None:
        purse = POOL.open(POOL.slots)
        assert purse is not None
        self.purse = purse
        self.receiver = Receiver(self.purse)
        self.hold = hold
        self.most = most
        self.held: list[Incoming] = []
        self.seen: list[tuple[int, ...]] = []

    def take(self) -> None:
        while found := self.receiver.requests(self.most):
            self.held += found
            while len(self.held) > self.hold:
                self.seen.append(settle(self.held.pop(0)))

    def run(self, data: bytes, cuts: list[int]) -> None:
        position, turn = 0, 0
        while position < len(data):
            views = self.receiver.views()
            if not views:
                if self.receiver.broken:
                    break
                assert self.held, "no memory, and nobody has it"
                self.seen.append(settle(self.held.pop(0)))
                continue
            room = min(cuts[turn % len(cuts)] if cuts else 1 << 30, len(data) - position)
            turn += 1
            count = 0
            for view in views:
                part = data[position + count : position + min(room, count + len(view))]
                view[: len(part)] = part
                count += len(part)
            assert count > 0
            position += count
            self.receiver.received(count)
            self.take()
        self.seen += [settle(request) for request in self.held]

    def close(self) -> None:
        free, common = POOL.free, POOL.common
        self.receiver.close()
        self.purse.close()
        assert self.purse.held == 0
        assert POOL.free >= free and POOL.common >= common
        assert POOL.free == POOL.slots and POOL.common == POOL.stock


@given(REQUESTS, CUTS, st.integers(0, 4), st.integers(1, 20))
def test_any_chunking_gives_the_same_requests(
    requests: list[tuple[int, int, int, int]], cuts: list[int], hold: int, most: int
) -> None:
    data, expected = stream_of(requests)
    session = Session(hold=hold, most=most)
    session.run(data, cuts)
    assert session.seen == expected
    assert not session.receiver.broken
    assert not session.receiver.partial
    session.close()


@given(REQUESTS, st.binary(min_size=1, max_size=200), CUTS)
def test_random_bytes_never_raise(requests: list[tuple[int, int, int, int]], noise: bytes, cuts: list[int]) -> None:
    data, expected = stream_of(requests)
    session = Session()
    session.run(data + noise, cuts)
    assert session.seen[: len(expected)] == expected
    session.close()


@given(st.binary(max_size=4000), CUTS)
def test_noise_alone(noise: bytes, cuts: list[int]) -> None:
    session = Session()
    session.run(noise, cuts)
    assert len(noise) < REQUEST.size or session.receiver.broken or session.seen
    session.close()


def test_longest_payload() -> None:
    data, expected = stream_of([(Cmd.WRITE, 0, 7, REQUEST_MAX_BYTES), (Cmd.READ, 0, 8, 512)])
    session = Session()
    session.run(data, [1 << 20, 777])
    assert session.seen == expected
    session.close()


def test_claimed_length_beyond_the_limit() -> None:
    for length in (REQUEST_MAX_BYTES + 1, (1 << 32) - 1):
        session = Session()
        session.run(REQUEST.pack(REQUEST_MAGIC, 0, Cmd.WRITE, 1, 0, length) + bytes(5000), [])
        assert "payload" in session.receiver.broken
        assert session.receiver.views() == []
        session.close()


def test_stops_when_memory_is_short_and_goes_on() -> None:
    session = Session()
    others = [purse for _ in range(3) if (purse := POOL.open(POOL.slots)) is not None]
    taken = others[0].take(POOL.common + OWN_SLOTS)
    assert taken is not None
    data, expected = stream_of([(Cmd.WRITE, 0, 9, 4 * SLOT_BYTES)])
    views = session.receiver.views()
    views[0][: REQUEST.size] = data[: REQUEST.size]
    session.receiver.received(REQUEST.size)
    assert session.receiver.requests(9) == []
    assert session.receiver.views() == []
    assert session.receiver.short_of == 4
    called: list[int] = []
    session.purse.when_free(4, lambda: called.append(1))
    for slot in taken:
        slot.release()
    assert called == [1]
    session.run(data[REQUEST.size :], [])
    assert session.seen == expected
    for purse in others:
        purse.close()
    session.close()


def test_half_a_write_leaves_nothing() -> None:
    data, _ = stream_of([(Cmd.WRITE, 0, 9, 4 * SLOT_BYTES)])
    for length in (10, 28, 5000, SLOT_BYTES + 9):
        session = Session()
        session.run(data[:length], [4096])
        assert session.seen == []
        assert session.receiver.partial
        session.close()
