"""What the assembler expected where a line stops making sense: the longest beginning that could be an instruction."""

from __future__ import annotations

import re
from typing import Final

from uxk.core.suggest import did_you_mean

_REG: Final = r"[rw](?:10|\d)\b"
_INT: Final = r"[-+]?(?:0[xX][0-9a-fA-F]+|\d+)\b"
_CHANGE: Final = r"(?:s/|s%|s>>|[-+*/|&%^]|<<|>>)="
_COMPARISON: Final = r"(?:==|!=|s>=|s<=|s>|s<|>=|<=|>|<|&)"
_WIDTH: Final = r"\*\s*\(\s*[us](?:8|16|32|64)\s*\*\s*\)"
_PLACE: Final = rf"{_WIDTH}\s*\(\s*r(?:10|\d)\s*(?:[-+]\s*\w+\s*)?\)"
_TO: Final = r"(?:[-+]\d+|[A-Za-z_.$][\w.$]*)"
_IF: Final = rf"if\s+{_REG}"
_TESTED: Final = rf"{_IF}\s*{_COMPARISON}\s*(?:{_REG}|{_INT})"
_END: Final = "the end of the line"
_SOURCE: Final = "a register or a number"
_TARGET: Final = "a label, or a distance such as +3"
_VALUE: Final = (
    "a register, a number, -register, (s8)register, be16 register, *(u64 *)(r1 + 0), NUMBER ll, map[fd:1], "
    "atomic_fetch_add(), xchg_64(), cmpxchg_64() or load_acquire()"
)
_STAGES: Final = tuple(
    (re.compile(form, re.ASCII), what)
    for form, what in (
        (_REG, "= or one of += -= *= /= s/= %= s%= |= &= ^= <<= >>= s>>="),
        (rf"{_REG}\s*{_CHANGE}", _SOURCE),
        (rf"{_REG}\s*{_CHANGE}\s*(?:{_REG}|{_INT})", _END),
        (rf"{_REG}\s*=(?!=)", _VALUE),
        (rf"{_REG}\s*=\s*{_INT}", f"{_END}, or ll"),
        (rf"{_REG}\s*=\s*(?:{_REG}|{_PLACE})", _END),
        (r"\*", "(u8 *), (u16 *), (u32 *) or (u64 *), and an address such as (r1 + 0)"),
        (rf"(?:{_REG}\s*=\s*|lock\s+)?{_WIDTH}\s*\(", "a register, r0 to r10, an offset such as + 8, and )"),
        (_PLACE, "="),
        (rf"{_PLACE}\s*=", _SOURCE),
        (rf"{_PLACE}\s*=\s*(?:{_REG}|{_INT})", _END),
        (r"lock\b", "*(u32 *) or *(u64 *), and an address such as (r1 + 0)"),
        (rf"lock\s+{_PLACE}", "one of += |= &= ^="),
        (rf"lock\s+{_PLACE}\s*[+|&^]=", "a register"),
        (r"if\b", "a register"),
        (_IF, "one of == != > >= < <= s> s>= s< s<= &"),
        (rf"{_IF}\s*{_COMPARISON}", _SOURCE),
        (_TESTED, "goto"),
        (rf"{_TESTED}\s*goto\b", _TARGET),
        (rf"{_TESTED}\s*goto\s+{_TO}", _END),
        (r"(?:goto|gotol|may_goto)\b", _TARGET),
        (rf"(?:goto|gotol|may_goto)\s+{_TO}", _END),
        (r"call\b", "a helper's number, a function's name, pc+3 or kfunc#1"),
        (r"call\s+[-+#\w]+", _END),
        (r"callx\b", "a register"),
        (r"exit\b", _END),
        (r"store_release\b", "((u64 *)(r1 + 0), register)"),
        (r"\.insn\b", "five numbers: opcode, destination, source, offset, immediate"),
    )
)
_WORDS: Final = ("exit", "goto", "gotol", "may_goto", "if", "lock", "call", "callx", "store_release", ".insn")
SHOWN_MAX: Final = 60


def short(text: str) -> str:
    """Text in quotes, cut where it is long."""
    return repr(text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "...")


def expected(line: str) -> tuple[int, str]:
    """Where a line that is no instruction goes wrong, from 0, and what was expected there."""
    best, what = 0, ""
    for pattern, following in _STAGES:
        found = pattern.match(line)
        if found and found.end() > best:
            best, what = found.end(), following
    while best < len(line) and line[best].isspace():
        best += 1
    if re.compile(r"[rw]\d+\b", re.ASCII).match(line, best) and "register" in (what or "register"):
        return best, "r0 to r10, or w0 to w10"
    if not what:
        word = re.match(r"[\w.]*", line, re.ASCII)
        return 0, f"an instruction, a label or a comment{did_you_mean(word[0] if word else '', _WORDS)}"
    return best, what
