"""Assembler for the text form that LLVM reads (``r0 = 1``, ``if r1 s> 5 goto loop``, ``exit``), with labels.

A line holds one instruction; ``name:`` before it, or alone, is a label; ``#``, ``//`` and ``;`` begin a comment.
``.insn`` with five numbers is any slot at all.
Sources: LLVM's BPFInstrInfo.td for the text, RFC 9669 for the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.asm_hints import expected, short
from uxk.bpf.disasm import ADDR_SPACE_CAST, ALU_SIGN, FETCH_NAME, JUMP_SIGN, SIZE_NAME
from uxk.bpf.errors import AssemblyError
from uxk.bpf.helpers import NUMBERS
from uxk.bpf.insn import Insn
from uxk.core.suggest import did_you_mean

Target = int | str
"""A distance in slots, or a label."""
Parsed = tuple[list[Insn], Target | None]
"""The slots of a line and where it goes, if anywhere."""

_SIGN_ALU: Final = {sign: op for op, sign in ALU_SIGN.items()} | {"s/=": i.DIV, "s%=": i.MOD}
_SIGN_JUMP: Final = {sign: op for op, sign in JUMP_SIGN.items()}
_SIZE: Final = {name: size for size, name in SIZE_NAME.items()}
_FETCH: Final = {name: op for op, name in FETCH_NAME.items()}
_INT = r"[-+]?(?:0[xX][0-9a-fA-F]+|\d+)"
_REG = r"[rw](?:10|\d)"
_TO = r"(?P<to>[-+]\d+|[A-Za-z_.$][\w.$]*)"
_MEM = r"\*\s*\(\s*(?P<size>[us](?:8|16|32|64))\s*\*\s*\)\s*\(\s*(?P<base>r10|r\d)\s*(?:(?P<off>[-+]\s*\w+)\s*)?\)"
_POINTER = r"\(\s*(?P<size>u(?:8|16|32|64))\s*\*\s*\)\s*\(\s*(?P<base>r10|r\d)\s*(?:(?P<off>[-+]\s*\w+)\s*)?\)"
_PLACE = r"(?P<base>r10|r\d)\s*(?P<off>[-+]\s*\w+)"
_LABEL: Final = re.compile(r"\s*([A-Za-z_.$][\w.$]*)\s*:", re.ASCII)
_COMMENT: Final = re.compile(r"(?<!kfunc)#|//|;")
_LINE_END: Final = re.compile(r"\r\n?|\n")
_NUMBER: Final = re.compile(_INT, re.ASCII)
_DIGITS_MAX: Final = 40
"""Longer numbers are not read at all."""


def assemble(text: str, *, symbols: Mapping[str, int] | None = None) -> bytes:
    """The program that ``text`` describes.  ``call NAME`` looks for a label, then in ``symbols`` (None: uxk's helpers).

    Raises ``AssemblyError`` with line, column, what stands there and what was expected.
    """
    return i.encode(parse(text, symbols=symbols))


def parse(text: str, *, symbols: Mapping[str, int] | None = None) -> list[Insn]:
    """Like ``assemble``, as slots."""
    insns: list[Insn] = []
    labels: dict[str, int] = {}
    fixes: list[tuple[int, str, int, int]] = []
    for number, raw in enumerate(_LINE_END.split(text), 1):
        comment, at = _COMMENT.search(raw), 0
        code = raw[: comment.start()] if comment else raw
        while found := _LABEL.match(code, at):
            if found[1] in labels:
                why = f"label {short(found[1])} is there already, at instruction {labels[found[1]]}; expected a new one"
                raise AssemblyError(number, why, found.start(1) + 1)
            labels[found[1]] = len(insns)
            at = found.end()
        line = code[at:].strip()
        if not line:
            continue
        column = code.index(line, at) + 1
        slots, target = _line(line, number, column)
        if isinstance(target, str):
            fixes.append((len(insns), target, number, column + line.rindex(target)))
        insns += slots
    for pc, label, number, column in fixes:
        try:
            insns[pc] = _resolve(insns[pc], pc, label, labels, NUMBERS if symbols is None else symbols)
        except _Wrong as exc:
            raise AssemblyError(number, str(exc), column) from None
    return insns


def _resolve(insn: Insn, pc: int, label: str, labels: Mapping[str, int], symbols: Mapping[str, int]) -> Insn:
    if label in labels:
        distance = labels[label] - pc - 1
        if insn.opcode in (i.CALL_INSN, i.GOTOL):
            return insn._replace(imm=distance, src=i.CALL_LOCAL if insn.opcode == i.CALL_INSN else 0)
        if not -0x8000 <= distance <= 0x7FFF:
            raise _Wrong(f"label {short(label)} is {distance} instructions away; expected -32768 to 32767", label)
        return insn._replace(off=distance)
    if insn.opcode == i.CALL_INSN and label in symbols:
        return insn._replace(imm=symbols[label])
    known = [*labels, *symbols] if insn.opcode == i.CALL_INSN else list(labels)
    what = "function, label or helper" if insn.opcode == i.CALL_INSN else "label"
    raise _Wrong(f"no {what} {short(label)}{did_you_mean(label, known)}", label)


def _line(line: str, number: int, column: int) -> Parsed:
    for pattern, build in _FORMS:
        found = pattern.fullmatch(line)
        if found:
            try:
                return build(found, number)
            except _Wrong as exc:
                at = max(line.find(exc.text), 0)
                raise AssemblyError(number, f"{short(line)}: {exc}", column + at) from None
    at, what = expected(line)
    there = short(line[at:]) if at < len(line) else "the line ends"
    raise AssemblyError(number, f"{short(line)} is no instruction: {there}; expected {what}", column + at)


class _Wrong(Exception):
    """What is wrong with the fields of a line; ``text``: where."""

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


def _int(text: str, low: int, high: int, what: str) -> int:
    clean = "".join(text.split())
    if not _NUMBER.fullmatch(clean):
        raise _Wrong(f"{short(text)} is no number; expected {what}, {low} to {high}", text)
    value = int(clean, 16 if "x" in clean.lower() else 10) if len(clean) <= _DIGITS_MAX else None
    if value is None or not low <= value <= high:
        raise _Wrong(f"{what} {short(clean)[1:-1]}; expected {low} to {high}", text)
    return value


def _imm(text: str) -> int:
    return i.s32(_int(text, -(1 << 31), i.M32, "immediate"))


def _off(text: str | None) -> int:
    return _int(text, -0x8000, 0x7FFF, "offset") if text else 0


def _register(text: str, kind: str = "rw") -> int:
    if text[0] not in kind or int(text[1:]) >= i.REGISTERS:
        raise _Wrong(f"no register {text!r} here; expected {kind[0]}0 to {kind[0]}10", text)
    return int(text[1:])


def _target(text: str) -> Target:
    return _int(text, -(1 << 31), (1 << 31) - 1, "distance") if text[0] in "+-" else text


def _alu(m: re.Match[str], number: int) -> Parsed:
    name, sign, source = m["dst"][0], m["sign"], m["source"]
    cls, op = i.ALU64 if name == "r" else i.ALU, _SIGN_ALU[sign]
    off = 1 if sign in ("s/=", "s%=") else 0
    dst = _register(m["dst"])
    if re.fullmatch(_REG, source):
        return [Insn(cls | op | i.X, dst, _register(source, name), off, 0)], None
    return [Insn(cls | op, dst, 0, off, _imm(source))], None


def _neg(m: re.Match[str], number: int) -> Parsed:
    if m["dst"] != m["source"]:
        raise _Wrong(f"the source must be {m['dst']}")
    return [Insn((i.ALU64 if m["dst"][0] == "r" else i.ALU) | i.NEG, _register(m["dst"]))], None


def _swap(m: re.Match[str], number: int) -> Parsed:
    if m["dst"] != m["source"]:
        raise _Wrong(f"the source must be {m['dst']}")
    opcode = {"le": i.ALU | i.END, "be": i.ALU | i.END | i.X, "bswap": i.ALU64 | i.END}[m["order"]]
    return [Insn(opcode, _register(m["dst"], "r"), 0, 0, int(m["bits"]))], None


def _extend(m: re.Match[str], number: int) -> Parsed:
    name, bits = m["dst"][0], int(m["bits"])
    if bits == 32 and name == "w":
        raise _Wrong("32 bits are the whole register")
    opcode = (i.ALU64 if name == "r" else i.ALU) | i.MOV | i.X
    return [Insn(opcode, _register(m["dst"]), _register(m["source"], name), bits, 0)], None


def _cast(m: re.Match[str], number: int) -> Parsed:
    imm = int(m["to"]) << 16 | int(m["from"])
    return [
        Insn(i.ALU64 | i.MOV | i.X, _register(m["dst"], "r"), _register(m["source"], "r"), ADDR_SPACE_CAST, imm)
    ], None


def _wide(m: re.Match[str], number: int) -> Parsed:
    value = _int(m["value"], -(1 << 63), i.M64, "immediate")
    return list(i.lddw(_register(m["dst"], "r"), value)), None


def _map(m: re.Match[str], number: int) -> Parsed:
    inside = m["inside"] is not None
    kinds = {"fd": (i.IMM64_MAP_FD, i.IMM64_MAP_VALUE), "idx": (i.IMM64_MAP_IDX, i.IMM64_MAP_IDX_VALUE)}
    low = _int(m["number"], 0, (1 << 31) - 1, "map")
    high = _int(m["inside"], 0, i.M32, "offset into a map's value") if inside else 0
    return list(i.lddw(_register(m["dst"], "r"), high << 32 | low, kinds[m["word"]][inside])), None


def _load(m: re.Match[str], number: int) -> Parsed:
    signed = m["size"][0] == "s"
    size = _SIZE["u" + m["size"][1:]]
    if signed and size == i.DW:
        raise _Wrong("64 bits have no sign to extend")
    opcode = i.LDX | size | (i.MEMSX if signed else i.MEM)
    # LLVM prints narrow loads into w registers, which is the same instruction.
    return [Insn(opcode, _register(m["dst"]), _register(m["base"], "r"), _off(m["off"]), 0)], None


def _store(m: re.Match[str], number: int) -> Parsed:
    if m["size"][0] == "s":
        raise _Wrong(f"no store of {m['size']}; expected u{m['size'][1:]}")
    size, base, off = _SIZE[m["size"]], _register(m["base"], "r"), _off(m["off"])
    if re.fullmatch(_REG, m["source"]):
        return [Insn(i.STX | size | i.MEM, base, _register(m["source"]), off, 0)], None
    return [Insn(i.ST | size | i.MEM, base, 0, off, _imm(m["source"]))], None


def _lock(m: re.Match[str], number: int) -> Parsed:
    return _atomic(m, _SIGN_ALU[m["sign"]], m["source"])


def _fetch(m: re.Match[str], number: int) -> Parsed:
    if m["dst"] != m["source"]:
        raise _Wrong(f"the operand must be {m['dst']}")
    return _atomic(m, _FETCH[m["word"]] | i.FETCH, m["source"])


def _atomic(m: re.Match[str], operation: int, source: str) -> Parsed:
    size = _SIZE[m["size"]] if m["size"][0] == "u" else -1
    if size not in (i.W, i.DW):
        raise _Wrong(f"an atomic operation on {m['size']}; expected u32 or u64")
    register = _register(source, "r" if size == i.DW else "wr")
    return [Insn(i.STX | size | i.ATOMIC, _register(m["base"], "r"), register, _off(m["off"]), operation)], None


def _exchange(m: re.Match[str], number: int) -> Parsed:
    wide, swap = m["bits"] == "_64", m["word"] == "xchg"
    source = m["source"]
    if m["dst"] != (source if swap else m["expected"]) or (not swap and m["dst"] not in ("r0", "w0")):
        raise _Wrong("the old value goes to the operand's register" if swap else "the old value goes to r0 or w0")
    size, kind = (i.DW, "r") if wide else (i.W, "w")
    operation = i.XCHG if swap else i.CMPXCHG
    return [
        Insn(i.STX | size | i.ATOMIC, _register(m["base"], "r"), _register(source, kind), _off(m["off"]), operation)
    ], None


def _acquire(m: re.Match[str], number: int) -> Parsed:
    opcode = i.STX | _SIZE[m["size"]] | i.ATOMIC
    return [Insn(opcode, _register(m["dst"]), _register(m["base"], "r"), _off(m["off"]), i.LOAD_ACQ)], None


def _release(m: re.Match[str], number: int) -> Parsed:
    opcode = i.STX | _SIZE[m["size"]] | i.ATOMIC
    return [Insn(opcode, _register(m["base"], "r"), _register(m["source"]), _off(m["off"]), i.STORE_REL)], None


def _if(m: re.Match[str], number: int) -> Parsed:
    name, source, target = m["dst"][0], m["source"], _target(m["to"])
    opcode = (i.JMP if name == "r" else i.JMP32) | _SIGN_JUMP[m["sign"]]
    off = target if isinstance(target, int) else 0
    if not -0x8000 <= off <= 0x7FFF:
        raise _Wrong(f"distance {off}; expected -32768 to 32767", m["to"])
    dst = _register(m["dst"])
    if re.fullmatch(_REG, source):
        return [Insn(opcode | i.X, dst, _register(source, name), off, 0)], target
    return [Insn(opcode, dst, 0, off, _imm(source))], target


def _goto(m: re.Match[str], number: int) -> Parsed:
    target, word = _target(m["to"]), m["word"]
    distance = target if isinstance(target, int) else 0
    if word == "gotol":
        return [Insn(i.GOTOL, 0, 0, 0, distance)], target
    if not -0x8000 <= distance <= 0x7FFF:
        raise _Wrong(f"distance {distance}; expected -32768 to 32767", m["to"])
    return [Insn(i.MAY_GOTO if word == "may_goto" else i.JMP | i.JA, 0, 0, distance, 0)], target


def _call(m: re.Match[str], number: int) -> Parsed:
    if m["local"]:
        return [Insn(i.CALL_INSN, 0, i.CALL_LOCAL, 0, _imm(m["local"]))], None
    if m["kfunc"]:
        return [Insn(i.CALL_INSN, 0, i.CALL_KFUNC, 0, _imm(m["kfunc"]))], None
    if m["name"]:
        return [Insn(i.CALL_INSN)], m["name"]
    return [Insn(i.CALL_INSN, 0, i.CALL_HELPER, 0, _imm(m["number"]))], None


def _callx(m: re.Match[str], number: int) -> Parsed:
    return [Insn(i.CALLX, _register(m["register"], "r"))], None


def _exit(m: re.Match[str], number: int) -> Parsed:
    return [Insn(i.EXIT_INSN)], None


def _raw(m: re.Match[str], number: int) -> Parsed:
    opcode, dst, src, off, imm = (part.strip() for part in m["fields"].split(","))
    return [
        Insn(
            _int(opcode, 0, 255, "opcode"), _int(dst, 0, 15, "destination"), _int(src, 0, 15, "source"),
            _int(off, -0x8000, 0x7FFF, "offset"), _int(imm, -(1 << 31), (1 << 31) - 1, "immediate"),
        )
    ], None  # fmt: skip


def _alternatives(words: Mapping[str, int]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_SOURCE = rf"(?P<source>{_REG}|{_INT})"
_DST = rf"(?P<dst>{_REG})"
_EXPECTED = rf"(?P<expected>{_REG})\s*,\s*(?P<source>{_REG})"
_FORMS: Final[list[tuple[re.Pattern[str], Callable[[re.Match[str], int], Parsed]]]] = [
    (re.compile(form, re.ASCII), build)
    for form, build in (
        (r"exit", _exit),
        (rf"{_DST}\s*(?P<sign>{_alternatives(_SIGN_ALU)})\s*{_SOURCE}", _alu),
        (rf"{_DST}\s*=\s*-\s*(?P<source>{_REG})", _neg),
        (rf"{_DST}\s*=\s*(?P<order>le|be|bswap)(?P<bits>16|32|64)\s+(?P<source>{_REG})", _swap),
        (rf"{_DST}\s*=\s*\(\s*s(?P<bits>8|16|32)\s*\)\s*(?P<source>{_REG})", _extend),
        (rf"{_DST}\s*=\s*addr_space_cast\(\s*(?P<source>{_REG})\s*,\s*(?P<to>[01])\s*,\s*(?P<from>[01])\s*\)", _cast),
        (rf"{_DST}\s*=\s*(?P<value>{_INT})\s*ll", _wide),
        (rf"{_DST}\s*=\s*map\[(?P<word>fd|idx):(?P<number>\d+)\](?:\[0\]\+(?P<inside>\d+))?(?:\s+ll)?", _map),
        (rf"{_DST}\s*=\s*{_MEM}", _load),
        (rf"{_MEM}\s*=\s*{_SOURCE}", _store),
        (rf"lock\s+{_MEM}\s*(?P<sign>\+=|\|=|&=|\^=)\s*(?P<source>{_REG})", _lock),
        (rf"{_DST}\s*=\s*atomic_fetch_(?P<word>add|or|and|xor)\(\s*{_POINTER}\s*,\s*(?P<source>{_REG})\s*\)", _fetch),
        (rf"{_DST}\s*=\s*(?P<word>xchg)(?P<bits>_64|32_32)\(\s*{_PLACE}\s*,\s*(?P<source>{_REG})\s*\)", _exchange),
        (rf"{_DST}\s*=\s*(?P<word>cmpxchg)(?P<bits>_64|32_32)\(\s*{_PLACE}\s*,\s*{_EXPECTED}\s*\)", _exchange),
        (rf"{_DST}\s*=\s*load_acquire\(\s*{_POINTER}\s*\)", _acquire),
        (rf"store_release\(\s*{_POINTER}\s*,\s*(?P<source>{_REG})\s*\)", _release),
        (rf"if\s+{_DST}\s*(?P<sign>{_alternatives(_SIGN_JUMP)})\s*{_SOURCE}\s+goto\s+{_TO}", _if),
        (rf"(?P<word>goto|gotol|may_goto)\s+{_TO}", _goto),
        (r"call\s+(?:pc(?P<local>[-+]\d+)|kfunc#(?P<kfunc>\d+)|(?P<number>\d+)|(?P<name>[A-Za-z_.$][\w.$]*))", _call),
        (r"callx\s+(?P<register>r10|r\d)", _callx),
        (r"\.insn\s+(?P<fields>[^,]+(?:,[^,]+){4})", _raw),
    )
]  # fmt: skip
