"""Requests for modules about which nothing is known: ordinary ones, and the worst that a client can send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from uxk.limits import I64_MAX, PAYLOAD_MAX_BYTES, U32_MAX
from uxk.uapi.entries import Op, Request

BLOCK_BYTES: Final = 512
_U31_MAX: Final = (1 << 31) - 1
_OPCODES: Final = (*map(int, Op), 7, 127, Op.PRIVATE + 1, 255, 1 << 16, _U31_MAX)
_NOWHERE: Final = (7, _U31_MAX)
_NO_REGION: Final = (1, I64_MAX)


def ordinary(count: int) -> list[Request]:
    """``count`` requests such as a well-meaning client sends."""
    shapes: tuple[dict[str, Any], ...] = (
        {"opcode": Op.WRITE, "payload": bytes(range(256)) * 2, "length": BLOCK_BYTES},
        {"opcode": Op.READ, "length": BLOCK_BYTES},
        {"opcode": Op.CALL, "payload": b"ping"},
        {"opcode": Op.READ, "offset": BLOCK_BYTES, "length": BLOCK_BYTES},
        {"opcode": Op.FLUSH},
        {"opcode": Op.NOP},
    )
    return [Request(0, **shapes[number % len(shapes)]) for number in range(count)]


def hostile() -> Iterator[tuple[str, list[Request]]]:
    """Groups of well-formed requests that no client should send, by what is wrong with them.

    The group that could make a careless module allocate gigabytes comes last, after the one that unmasks it.
    """
    yield "every opcode, nothing else", [Request(0, opcode) for opcode in _OPCODES]
    yield (
        "payloads that are no message",
        [Request(0, opcode, payload) for opcode in _OPCODES for payload in (b"\0", b"\xff" * 64, b"\x93\x01")],
    )
    yield (
        "devices that do not exist",
        [Request(0, opcode, b"", 0, BLOCK_BYTES, 0, 0, device) for opcode in _OPCODES for device in _NOWHERE],
    )
    yield (
        "memory that does not exist",
        [Request(0, opcode, b"", 0, BLOCK_BYTES, region) for opcode in _OPCODES for region in _NO_REGION],
    )
    yield "offsets beyond every end", [
        Request(0, opcode, b"x" * BLOCK_BYTES, offset, BLOCK_BYTES)
        for opcode in _OPCODES for offset in (1, (1 << 40) + 1, I64_MAX - 1, I64_MAX)
    ]  # fmt: skip
    yield (
        "maximal payloads",
        [Request(0, opcode, b"\xa5" * PAYLOAD_MAX_BYTES, 0, PAYLOAD_MAX_BYTES) for opcode in _OPCODES[:12]],
    )
    yield "lengths beyond a payload", [Request(0, opcode, b"", 0, PAYLOAD_MAX_BYTES + 1) for opcode in _OPCODES]
    yield "huge lengths", [
        Request(0, opcode, b"", offset, U32_MAX) for opcode in _OPCODES for offset in (0, I64_MAX)
    ]  # fmt: skip
