"""Where Linux runs exported programs, and what stands before a body there: it fetches the bytes and calls the body.

Bytes of a packet are read in place or copied; copies lie in a per-CPU map.  A program can be interrupted there by
itself (a socket filter, for one, runs preemptibly), so a copy is claimed first, and one of several is taken.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uxk.bpf import insn as i
from uxk.bpf.asm import assemble
from uxk.bpf.insn import Insn, decode

COPIES: Final = 4
"""Runs of one program that may interrupt each other on one CPU; a further one decides as on too few bytes."""
CLAIM_BYTES: Final = 8
"""Before each copy: 1 while it is in use."""
COPY_MAX_BYTES: Final = (32 << 10) - CLAIM_BYTES
"""Linux's bound for a value for each CPU (PCPU_MIN_UNIT_SIZE)."""
PLACE_MAX_BYTES: Final = (1 << 16) - 1
"""Linux's bound for bytes in place (MAX_PACKET_OFF, and the context of a program of type syscall)."""
KEYS: Final = b"".join(index.to_bytes(4, "little") for index in range(COPIES))
"""Constants, so that what stands before a body needs no stack: it may all be the body's."""
_XDP_LOAD, _SKB_LOAD, _EBUSY = 189, 26, -16


class Hook(NamedTuple):
    """``otherwise``: the verdict on too few bytes.  ``helper``: copies bytes of a packet (0: the context is the bytes).

    ``binary``: Linux takes nothing but 0 and 1 there, so other verdicts become 1.
    """

    otherwise: int
    helper: int = 0
    binary: bool = False


HOOKS: Final = {
    "xdp": Hook(2, _XDP_LOAD),
    "tc": Hook(0, _SKB_LOAD),
    "socket": Hook(0, _SKB_LOAD),
    "cgroup_skb/ingress": Hook(1, _SKB_LOAD, binary=True),
    "cgroup_skb/egress": Hook(1, _SKB_LOAD, binary=True),
    "syscall": Hook(_EBUSY),
}
"""By the sections whose names tell libbpf what a program is.  Packets too short: XDP_PASS, TC_ACT_OK, drop, pass."""


class Before(NamedTuple):
    """What stands before a body.  Slots of what is to be relocated: loads of maps, and the call."""

    insns: list[Insn]
    call: int
    copies: int | None = None
    keys: int | None = None
    arena: int | None = None


_CLAIM: Final = f"""
    r6 = r1
    r8 = 0
next:
    r1 = map[fd:1] ll
    r2 = map[fd:2][0]+0 ll
    r3 = r8
    r3 <<= 2
    r2 += r3
    call 1
    if r0 == 0 goto busy
    r7 = r0
    r1 = 1
    r1 = xchg_64(r7 + 0, r1)
    if r1 == 0 goto mine
    r8 += 1
    if r8 < {COPIES} goto next
busy:
    r0 = {{otherwise}}
    exit
mine:
"""


def before(hook: Hook, size_bytes: int, zeros_bytes: int = 0, *, copied: bool, arena: bool = False) -> Before:
    """For a body with ``size_bytes`` of memory, of which the last ``zeros_bytes`` are always 0."""
    given_bytes = size_bytes - zeros_bytes
    arguments = f"r2 = {size_bytes}\ncall body\n"
    binary = "w0 = w0\nif r0 == 0 goto cut\nr0 = 1\ncut:\n" if hook.binary else ""
    if not size_bytes:
        text = f"r1 = 0\n{arguments}{binary}exit"
    elif copied:
        text = _copied(hook, size_bytes, given_bytes, arguments, binary)
    elif not hook.helper:
        text = f"{arguments}exit"
    else:  # data and data_end of struct xdp_md
        text = (
            f"r2 = *(u32 *)(r1 + 4)\nr1 = *(u32 *)(r1 + 0)\nr3 = r1\nr3 += {given_bytes}\nif r3 > r2 goto short\n"
            f"{arguments}{binary}exit\nshort: r0 = {hook.otherwise}\nexit"
        )
    text = ("r0 = map[fd:3] ll\n" if arena else "") + text
    *insns, _ = decode(assemble(f"{text}\nbody: exit"))
    call = next(slot for slot, insn in enumerate(insns) if insn.is_local_call)
    insns[call] = insns[call]._replace(imm=-1)
    maps = {insn.imm: slot for slot, insn in enumerate(insns) if insn.opcode == i.LDDW}
    for slot in maps.values():
        insns[slot] = insns[slot]._replace(src=0, imm=0)
    return Before(insns, call, maps.get(1), maps.get(2), maps.get(3))


def _copied(hook: Hook, size_bytes: int, given_bytes: int, arguments: str, binary: str) -> str:
    zeros = "".join(f"*(u64 *)(r7 + {at + CLAIM_BYTES}) = 0\n" for at in range(given_bytes, size_bytes, 8))
    lines = [_CLAIM.format(otherwise=hook.otherwise)]
    back = ""
    if hook.helper:
        lines.append(
            f"r1 = r6\nr2 = 0\nr3 = r7\nr3 += {CLAIM_BYTES}\nr4 = {given_bytes}\ncall {hook.helper}\n"
            "if r0 != 0 goto short\n"
        )
    else:
        for at, width in _pieces(given_bytes):
            there, copy = f"*(u{8 * width} *)(r6 + {at})", f"*(u{8 * width} *)(r7 + {at + CLAIM_BYTES})"
            lines.append(f"r1 = {there}\n{copy} = r1\n")
            back += f"r1 = {copy}\n{there} = r1\n"
    lines.append(f"{zeros}r1 = r7\nr1 += {CLAIM_BYTES}\n{arguments}{binary}{back}")
    if hook.helper:
        lines.append(f"goto done\nshort: r0 = {hook.otherwise}\ndone:\n")
    return "".join([*lines, "*(u64 *)(r7 + 0) = 0\nexit"])


def _pieces(size_bytes: int) -> list[tuple[int, int]]:
    """Places and widths of aligned loads that cover so many bytes."""
    found = [(at, 8) for at in range(0, size_bytes - 7, 8)]
    at = size_bytes & ~7
    for width in (4, 2, 1):
        if size_bytes & width:
            found.append((at, width))
            at += width
    return found
