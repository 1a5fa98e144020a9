"""What is refused, with which number, and replies as bytes."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk_nbd_server.checks import Terms, refusal, wire_error
from uxk_nbd_server.replies import EXTENTS_MAX, data_header, done, error_chunk, extents_for, simple, status_chunk
from uxk_nbd_server.wire import REQUEST_MAX_BYTES, Cmd, CmdFlag, Err

SIZE = 1 << 30
TERMS = Terms(SIZE, 512, read_only=False, structured=True, allocation=True, fast_zero=True)
F = CmdFlag

CASES = [
    (TERMS, Cmd.READ, 0, 0, 512, 0),
    (TERMS, Cmd.READ, F.FUA | F.DF, SIZE - 512, 512, 0),
    (TERMS, Cmd.READ, 0, SIZE, 512, Err.INVAL),
    (TERMS, Cmd.READ, 0, SIZE - 512, 1024, Err.INVAL),
    (TERMS, Cmd.READ, 0, 2**64 - 512, 1024, Err.INVAL),
    (TERMS, Cmd.READ, 0, 1, 512, Err.INVAL),
    (TERMS, Cmd.READ, 0, 0, 511, Err.INVAL),
    (TERMS, Cmd.READ, 0, 0, REQUEST_MAX_BYTES, 0),
    (TERMS, Cmd.READ, 0, 0, REQUEST_MAX_BYTES + 512, Err.OVERFLOW),
    (TERMS, Cmd.READ, F.NO_HOLE, 0, 512, Err.INVAL),
    (TERMS._replace(structured=False), Cmd.READ, F.DF, 0, 512, Err.INVAL),
    (TERMS, Cmd.WRITE, 0, SIZE, 512, Err.NOSPC),
    (TERMS, Cmd.WRITE, F.FUA, SIZE - 512, 512, 0),
    (TERMS, Cmd.WRITE, F.DF, 0, 512, Err.INVAL),
    (TERMS, Cmd.WRITE, 1 << 15, 0, 512, Err.INVAL),
    (TERMS, Cmd.WRITE, 0, 256, 512, Err.INVAL),
    (TERMS._replace(read_only=True), Cmd.WRITE, 0, SIZE, 512, Err.PERM),
    (TERMS._replace(read_only=True), Cmd.TRIM, 0, 0, 512, Err.PERM),
    (TERMS._replace(read_only=True), Cmd.WRITE_ZEROES, 0, 0, 512, Err.PERM),
    (TERMS._replace(read_only=True), Cmd.READ, 0, 0, 512, 0),
    (TERMS, Cmd.FLUSH, F.FUA, 0, 0, 0),
    (TERMS, Cmd.FLUSH, F.REQ_ONE, 0, 0, Err.INVAL),
    (TERMS, Cmd.TRIM, 0, SIZE - 512, 512, 0),
    (TERMS, Cmd.TRIM, 0, SIZE, 512, Err.INVAL),
    (TERMS, Cmd.CACHE, 0, 1, 7, 0),
    (TERMS, Cmd.CACHE, 0, SIZE, 7, Err.INVAL),
    (TERMS, Cmd.WRITE_ZEROES, F.NO_HOLE | F.FAST_ZERO | F.FUA, 0, SIZE, 0),
    (TERMS, Cmd.WRITE_ZEROES, 0, 512, SIZE, Err.NOSPC),
    (TERMS._replace(fast_zero=False), Cmd.WRITE_ZEROES, F.FAST_ZERO, 0, 512, Err.NOTSUP),
    (TERMS, Cmd.BLOCK_STATUS, F.REQ_ONE, 0, SIZE, 0),
    (TERMS, Cmd.BLOCK_STATUS, 0, 0, 0, Err.INVAL),
    (TERMS._replace(allocation=False), Cmd.BLOCK_STATUS, 0, 0, 512, Err.INVAL),
    (TERMS, 8, 0, 0, 512, Err.INVAL),
    (TERMS, 65535, 65535, 2**64 - 1, 2**32 - 1, Err.INVAL),
    (TERMS._replace(block_bytes=4096), Cmd.READ, 0, 512, 4096, Err.INVAL),
]


@pytest.mark.parametrize(("terms", "kind", "flags", "offset", "length", "error"), CASES)
def test_refusal(terms: Terms, kind: int, flags: int, offset: int, length: int, error: int) -> None:
    assert refusal(terms, kind, flags, offset, length) == error


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_what_is_accepted_is_within_the_disk(kind: int, flags: int, offset: int, length: int) -> None:
    for each in (kind, kind % 8):
        if not refusal(TERMS, each, flags, offset, length) and each not in (Cmd.FLUSH, Cmd.DISC):
            assert offset + length <= SIZE


def test_error_numbers() -> None:
    expected = {
        0: 0, errno.EPERM: 1, errno.EROFS: 1, errno.EIO: 5, errno.ENODATA: 5, errno.EBADE: 5, errno.ETIMEDOUT: 5,
        errno.EREMOTEIO: 5, errno.ENOMEM: 12, errno.EINVAL: 22, errno.ENOSPC: 28, errno.EOVERFLOW: 75,
        errno.EOPNOTSUPP: 95, errno.ENODEV: 108, errno.ESHUTDOWN: 108, errno.ESTALE: 108, 9999: 5,
    }  # fmt: skip
    assert {status: wire_error(status) for status in expected} == expected


def test_bytes_of_replies() -> None:
    cookie = 0x0102030405060708
    eight = bytes(range(1, 9))
    assert simple(cookie) == b"\x67\x44\x66\x98\0\0\0\0" + eight
    assert simple(cookie, 28) == b"\x67\x44\x66\x98\0\0\0\x1c" + eight
    head = b"\x66\x8e\x33\xef\0\1"
    assert data_header(cookie, 4096, 512) == head + b"\0\1" + eight + b"\0\0\2\x08" + bytes(6) + b"\x10\0"
    assert data_header(cookie, 0, 8, last=False)[4:6] == b"\0\0"
    assert done(cookie) == head + b"\0\0" + eight + bytes(4)
    assert error_chunk(cookie, 5, b"no") == head + b"\x80\1" + eight + b"\0\0\0\x08\0\0\0\5\0\2no"
    assert status_chunk(cookie, [(512, 3), (1024, 0)]) == (
        head + b"\0\5" + eight + b"\0\0\0\x14\0\0\0\1\0\0\2\0\0\0\0\3\0\0\4\0\0\0\0\0"
    )


def test_extents() -> None:
    hole, data = (512, True, True), (512, False, False)
    assert extents_for([], 4096) == [(4096, 0)]
    assert extents_for([hole, hole, data, (512, False, True)], 2048) == [(1024, 3), (512, 0), (512, 2)]
    assert extents_for([(8192, True, True)], 4096) == [(4096, 3)]
    assert extents_for([hole, hole, data], 1536, one=True) == [(1024, 3)]
    assert extents_for([(1 << 40, True, False)], (1 << 32) - 512) == [((1 << 32) - 65536, 1)]
    assert len(extents_for([hole, data] * EXTENTS_MAX, SIZE)) == EXTENTS_MAX


@given(st.lists(st.tuples(st.integers(0, 1 << 34), st.booleans(), st.booleans())), st.integers(1, 2**32 - 1))
def test_extents_fit(found: list[tuple[int, bool, bool]], length: int) -> None:
    for one in (False, True):
        extents = extents_for(found, length, one=one)
        assert extents
        assert sum(size for size, _ in extents) <= length
        assert all(0 < size < 1 << 32 for size, _ in extents)
        assert len(extents) == 1 or not one
