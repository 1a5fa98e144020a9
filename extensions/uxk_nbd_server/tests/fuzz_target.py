"""One session of a client as bytes, for fuzzers: whatever they are, what must hold is checked.

The first byte says how the stream is cut, the rest is the stream.
"""

from __future__ import annotations

from uxk_nbd_server.checks import Terms, refusal
from uxk_nbd_server.handshake import OPTION_MAX_BYTES, ExportInfo, Handshake, TlsPolicy
from uxk_nbd_server.memory import OWN_SLOTS, SLOT_BYTES, Pool
from uxk_nbd_server.receiver import Incoming, Receiver
from uxk_nbd_server.replies import data_header, error_chunk, extents_for, simple, status_chunk
from uxk_nbd_server.wire import (
    CLIENT_FLAGS,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    REQUEST_MAX_BYTES,
    U16,
    U32,
    Cmd,
    CmdFlag,
    Option,
    Tx,
)

EXPORT = ExportInfo("disk", "fuzzed", 1 << 24, Tx.HAS_FLAGS | Tx.SEND_FAST_ZERO, 512, 4096, REQUEST_MAX_BYTES)
STARTTLS = OPTION.pack(OPTION_MAGIC, Option.STARTTLS, 0)
CUTS = (0, 1, 7, 16, 28, 29, 512, 4096)
POLICIES: tuple[TlsPolicy, ...] = ("off", "allow", "require")
_POOL = Pool(memoryview(bytearray((2 * OWN_SLOTS + REQUEST_MAX_BYTES // SLOT_BYTES) * SLOT_BYTES)), 2)


def session(data: bytes) -> tuple[object, ...]:
    """Plays a session and returns what came of it.  AssertionError for what must not be."""
    if not data:
        return ()
    how, stream = data[0], data[1:]
    whole = _play(stream, POLICIES[how % 3], 0)
    cut = _play(stream, POLICIES[how % 3], CUTS[how // 3 % len(CUTS)])
    if STARTTLS not in stream:  # what follows it in one piece was said in the clear; cut off, it is TLS's own
        assert whole == cut, "the result depends on how the stream is cut"
    return whole


def _play(stream: bytes, tls: TlsPolicy, size: int) -> tuple[object, ...]:
    find = {"": EXPORT, "disk": EXPORT}.get
    shake = Handshake(find, lambda: [EXPORT], tls)
    out, at = [], 0
    size = size or max(1, len(stream))
    while at < len(stream) and shake.state not in ("transmission", "closed"):
        if shake.state == "tls":
            assert tls != "off"
            shake.secured()
        answer = shake.receive(stream[at : at + size])
        while answer:
            out.append(answer)
            answer = shake.receive(b"")
        at += size
        assert len(shake.rest) <= OPTION_MAX_BYTES + OPTION.size + size
    state = "tls" if shake.state == "tls" else shake.state
    if shake.state != "transmission":
        return state, shake.reason, b"".join(out)
    answers = b"".join(out)
    terms = Terms(EXPORT.size_bytes, 512, tls == "allow", shake.structured, shake.allocation, fast_zero=True)
    seen, broken, partial = _transmit(shake.rest + stream[at:], terms, size)
    _check_options(answers)
    return state, answers, shake.structured, shake.allocation, tuple(seen), broken, partial


def _check_options(answers: bytes) -> None:
    """Replies to options are whole; the answer to EXPORT_NAME has another form and comes last."""
    at = 0
    while at + OPTION_REPLY.size <= len(answers):
        magic, _, _, length = OPTION_REPLY.unpack_from(answers, at)
        if magic != OPTION_REPLY_MAGIC:
            break
        at += OPTION_REPLY.size + length
    assert len(answers) - at in (0, 10, 134)


def _transmit(stream: bytes, terms: Terms, size: int) -> tuple[list[tuple[int, ...]], str, bool]:
    purse = _POOL.open(_POOL.slots)
    assert purse is not None
    receiver = Receiver(purse)
    seen: list[tuple[int, ...]] = []
    at = 0
    try:
        while at < len(stream) and (views := receiver.views()):
            room = min(size, len(stream) - at)
            for view in views:
                part = stream[at : at + min(room, len(view))]
                view[: len(part)] = part
                receiver.received(len(part))
                at, room = at + len(part), room - len(part)
                if not room:
                    break
            while found := receiver.requests(5):
                seen += [_serve(request, terms) for request in found]
        return seen, receiver.broken, receiver.partial
    finally:
        receiver.close()
        purse.close()
        assert purse.held == 0 and _POOL.free == _POOL.slots and _POOL.common == _POOL.stock


def _serve(request: Incoming, terms: Terms) -> tuple[int, ...]:
    """What a server would do: refuse, or stay within the disk."""
    kind, flags, cookie, offset, length, pieces = request
    payload = 0
    for slot, start, count in pieces:
        payload = payload * 31 + sum(slot.view[start : start + count])
        assert 0 < count <= SLOT_BYTES - start
        slot.release()
    error = refusal(terms, kind, flags, offset, length)
    if kind == Cmd.WRITE:
        assert length <= REQUEST_MAX_BYTES
        assert sum(count for _, _, count in pieces) == length
    else:
        assert not pieces
    if not error and kind not in (Cmd.FLUSH, Cmd.DISC):
        assert offset + length <= terms.size_bytes
        assert not (kind in (Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES) and terms.read_only)
        if kind == Cmd.BLOCK_STATUS:
            extents = extents_for(
                [(512, True, True), (1 << 40, False, False)], length, one=bool(flags & CmdFlag.REQ_ONE)
            )
            assert 0 < sum(size for size, _ in extents) <= length
            status_chunk(cookie, extents)
        elif kind == Cmd.READ:
            data_header(cookie, offset, length)
    simple(cookie, error)
    error_chunk(cookie, error)
    return kind, flags, cookie, offset, length, error, payload


# --- where fuzzers begin --------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Sessions that go well, and a few that do not."""

    def option(number: int, data: bytes = b"") -> bytes:
        return OPTION.pack(OPTION_MAGIC, number, len(data)) + data

    def text(value: bytes) -> bytes:
        return U32.pack(len(value)) + value

    def request(kind: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> bytes:
        return REQUEST.pack(REQUEST_MAGIC, flags, kind, 7, offset, length) + payload

    hello = CLIENT_FLAGS.pack(3)
    go = option(Option.GO, text(b"") + U16.pack(2) + U16.pack(3) + U16.pack(1))
    query = text(b"disk") + U32.pack(1) + text(b"base:allocation")
    contexts = option(Option.STRUCTURED_REPLY) + option(Option.LIST_META_CONTEXT, query)
    contexts += option(Option.SET_META_CONTEXT, query)
    work = b"".join((
        request(Cmd.WRITE, 512, 512, CmdFlag.FUA, b"w" * 512), request(Cmd.READ, 0, 4096, CmdFlag.DF),
        request(Cmd.FLUSH), request(Cmd.TRIM, 0, 512), request(Cmd.CACHE, 0, 512),
        request(Cmd.WRITE_ZEROES, 0, 1 << 20, CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO),
        request(Cmd.BLOCK_STATUS, 0, 1 << 20, CmdFlag.REQ_ONE), request(99, 1, 2, 3), request(Cmd.DISC),
    ))  # fmt: skip
    starttls = option(Option.STARTTLS)
    streams = [
        hello + go + work,
        hello + option(Option.LIST) + option(Option.INFO, text(b"disk") + U16.pack(0)) + contexts + go + work,
        CLIENT_FLAGS.pack(1) + option(Option.EXPORT_NAME, b"disk") + work,
        hello + option(Option.GO, text(b"no") + U16.pack(0)) + option(77, b"?") + option(Option.ABORT),
        hello + starttls + contexts + go + work,
        hello + OPTION.pack(OPTION_MAGIC, Option.GO, OPTION_MAX_BYTES + 9) + bytes(OPTION_MAX_BYTES + 9) + go,
        hello + go + request(Cmd.WRITE, 0, 70_000, 0, b"l" * 70_000) + request(Cmd.READ, 0, 512),
        hello + go + request(Cmd.WRITE, 0, (1 << 32) - 1) + b"x" * 99,
        hello + OPTION.pack(OPTION_MAGIC, Option.GO, (1 << 32) - 1),
    ]
    return [bytes([how]) + stream for how in (0, 4, 8, 13) for stream in streams]
