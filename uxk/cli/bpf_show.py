"""How ``uxk bpf prog`` and ``uxk bpf map`` print: lines like bpftool's, or JSON of the same."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from uxk.cli.common import clean

_LISTS: Final[Mapping[str, str]] = {"attached": "attached", "maps": "map_ids", "programs": "prog_ids", "pins": "pinned"}
"""Attributes with one thing a line, and what JSON calls them."""
_TEXTS: Final = frozenset({"name", "tag", "at", "owner", "last_fault", "kind"})
_LINES: Final = (
    ("name", "tag", "at", "kind", "owner"),
    ("takes_bytes", "instructions", "longest", "cost_ns", "runs", "charged_ns", "faults", "key_bytes", "value_bytes",
     "max_entries", "count", "dropped", "held_bytes"),
    ("attached", "map_ids", "prog_ids", "pinned"), ("last_fault",),
)  # fmt: skip
"""What stands together on a line; the first follows the number."""
_ALWAYS_ZERO: Final = frozenset({"dropped", "faults"})
"""Not worth a word when 0."""


_MAP: Final = re.compile(r"map\[fd:(\d+)\]")


class Listing(NamedTuple):
    """A program's code; whether the text has its bytes, too; the kernel's numbers of maps by the program's."""

    code: bytes
    opcodes: bool
    maps: Mapping[str, str] = {}


class Ran(NamedTuple):
    """A test run: r0, the digits of its memory and whether to show them, and what the kernel charges for a run."""

    r0: int
    memory: str
    changed: bool
    cost_ns: int
    repeat: int


def typed(texts: Mapping[str, str]) -> dict[str, Any]:
    """Attributes as numbers, texts and lists; ``maps`` are the numbers of the kernel's maps."""
    made: dict[str, Any] = {}
    for name, text in texts.items():
        if name in _LISTS:
            lines = [line for line in text.split("\n") if line]
            made[_LISTS[name]] = [int(line.split()[-1]) for line in lines] if name in ("maps", "programs") else lines
        else:
            made[name] = text if name in _TEXTS else int(text)
    return made


def show(args: argparse.Namespace, shown: Any) -> None:
    """Prints it."""
    if wants_json(args):
        put(args, _plain(shown))
        return
    text = "\n".join(_text(shown))
    if text:
        print(text)


def wants_json(args: argparse.Namespace) -> bool:
    """Whether the command line says ``--json`` or ``--pretty``."""
    return bool(args.json or args.pretty)


def put(args: argparse.Namespace, value: Any) -> None:
    """One line of JSON, or indented."""
    import msgspec

    encoded = msgspec.json.encode(value)
    print((msgspec.json.format(encoded, indent=4) if args.pretty else encoded).decode())


def _plain(shown: Any) -> Any:
    """For JSON; bytes are a list of digits each, as of bpftool."""
    match shown:
        case Listing():
            return [{"slot": slot, "disasm": text, "opcodes": data.hex()} for slot, text, data in _insns(shown)]
        case Ran():
            return {key: value for key, value in shown._asdict().items() if key != "changed"}
        case bytes():
            return [f"{byte:#04x}" for byte in shown]
        case dict():
            return {key: _plain(value) for key, value in shown.items()}
        case list():
            return [_plain(each) for each in shown]
    return shown


def _text(shown: Any) -> list[str]:
    match shown:
        case Listing():
            return _listing(shown)
        case Ran():
            return [str(shown.r0), *([f"memory: {shown.memory}"] if shown.changed else [])]
        case {"safe": True}:
            longest, cost_ns = shown["longest"], shown["cost_ns"]
            return [
                f"safe at {shown['at']}: {shown['instructions']} instructions, at most {longest} a run, {cost_ns} ns"
            ]
        case {"next_key": _} | {"key": _}:
            return [_element(shown)]
        case dict():
            return _facts(shown)
    elements: Sequence[Any] = shown
    lines = [line for each in elements for line in _text(each)]
    if elements and "key" in elements[0]:
        lines.append(f"Found {len(elements)} element{'s' * (len(elements) != 1)}")
    return lines


def _element(shown: Mapping[str, Any]) -> str:
    words = {"next_key": "next key"}
    return "  ".join(
        f"{words.get(name, name)}: {value.hex(' ') if isinstance(value, bytes) else value}"
        for name, value in shown.items()
    )


def _facts(facts: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for names in _LINES:
        words = [
            f"{name} {','.join(map(str, value)) if isinstance(value, list) else clean(value)}"
            for name in names
            if (value := facts.get(name, "")) not in ("", []) and not (value == 0 and name in _ALWAYS_ZERO)
        ]
        if words:
            lines.append("\t" * bool(lines) + "  ".join(words))
    return [f"{facts['id']}: {lines[0]}", *lines[1:]]


def _insns(shown: Listing) -> list[tuple[int, str, bytes]]:
    """Slot, text and bytes of each instruction; maps by the kernel's numbers (``map[id:1]``), as Linux shows them."""
    from uxk.bpf.disasm import disassemble
    from uxk.bpf.insn import decode

    code = shown.code
    found = [re.match(r" *(\d+): (.*)", line) for line in disassemble(decode(code), numbers=True).splitlines()]
    starts = [(int(each[1]), each[2]) for each in found if each]
    ends = [slot for slot, _ in starts[1:]] + [len(code) // 8]
    return [
        (slot, _MAP.sub(lambda m: f"map[id:{shown.maps.get(m[1], m[1])}]", text), code[8 * slot : 8 * end])
        for (slot, text), end in zip(starts, ends, strict=True)
    ]


def _listing(shown: Listing) -> list[str]:
    lines: list[str] = []
    for slot, text, data in _insns(shown):
        lines.append(f"{slot:4}: {text}")
        if shown.opcodes:
            lines.append(f"      {data.hex(' ')}")
    return lines
