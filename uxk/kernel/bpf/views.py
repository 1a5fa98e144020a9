"""What ``/sys/fs/bpf`` shows: programs, maps, pins, and the attach points of decision sites.

It is there from the first program on.  Code and entries of maps are shown in parts, for an attribute is a page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from uxk.bpf.maps import ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import UsageError
from uxk.kernel.bpf import elements

if TYPE_CHECKING:
    from uxk.kernel.bpf.loaded import Loaded, LoadedMap
    from uxk.kernel.bpf.registry import Bpf

ROOT: Final = "/sys/fs/bpf"
CODE_BYTES: Final = 2_000
"""Of a program's code in one part, two digits a byte."""
ENTRY_CHARS: Final = 4_000
"""Of a map's entries in one part."""
RUN_MAX_BYTES: Final = 2_000


class Shown:
    """A program or a map in the tree, and the registry that it is in."""

    def __init__(self, bpf: Bpf, what: Any) -> None:
        self.bpf, self.what = bpf, what
        self.result = ""
        self.asked: dict[str, str] = {}
        """What was asked of a map, and the answer, by attribute."""


def _field(name: str, read: Callable[[Any], object]) -> Attribute:
    return Attribute(name, show=lambda shown: str(read(shown.what)))


def _pin(shown: Shown, text: str) -> None:
    shown.bpf.pin(shown.what, text)


def _run(shown: Shown, text: str) -> None:
    """A test run on bytes, as hexadecimal digits; the result is what is read then."""
    program: Loaded = shown.what
    try:
        memory = bytearray.fromhex(text)
    except ValueError:
        raise UsageError(f"run: {text[:40]!r}: expected hexadecimal digits in pairs") from None
    size_bytes = program.spec.memory.size_bytes if program.spec.memory else 0
    if len(memory) != size_bytes or size_bytes > RUN_MAX_BYTES:
        raise UsageError(f"run: {len(memory)} bytes; program {program.id} takes {size_bytes}")
    before = bytes(memory)
    r0 = program.test(memory)
    outcome = f"fault {program.last_fault}" if r0 is None else str(r0)
    shown.result = f"{outcome}\n{memory.hex()}" if memory != before else outcome


def _detach(shown: Shown, text: str) -> None:
    """The administrator takes it out of force, at one attach point or, with nothing written, at all."""
    for name in [text] if text else sorted(shown.what.attached):
        shown.bpf.detach(shown.what, name, "by the administrator")


def _owner(what: Loaded | LoadedMap) -> str:
    return "kernel" if what.owner is None else what.owner.name


PROGRAM: Final = attribute_table(
    _field("name", lambda p: p.name), _field("tag", lambda p: p.tag), _field("at", lambda p: p.at),
    _field("owner", _owner), _field("loaded_ns", lambda p: p.loaded_ns),
    _field("instructions", lambda p: len(p.program.proof.insns)),
    _field("followed", lambda p: p.program.proof.looked_at), _field("longest", lambda p: p.longest),
    _field("held_bytes", lambda p: p.held_bytes), _field("cost_ns", lambda p: p.cost_ns),
    _field("runs", lambda p: p.runs),
    _field("takes_bytes", lambda p: p.spec.memory.size_bytes if p.spec.memory else 0),
    _field("charged_ns", lambda p: p.charged_ns), _field("faults", lambda p: p.faults),
    _field("last_fault", lambda p: p.last_fault),
    _field("attached", lambda p: "\n".join(sorted(p.attached))),
    _field("maps", lambda p: "\n".join(f"{number} {each.id}" for number, each in sorted(p.maps.items()))),
    _field("pins", lambda p: "\n".join(sorted(p.pins))),
    _field("parts", lambda p: -(-len(p.program.code) // CODE_BYTES)),
    Attribute("pin", store=_pin), Attribute("run", show=lambda shown: shown.result, store=_run),
    Attribute("detach", store=_detach),
)  # fmt: skip
"""``/sys/fs/bpf/prog/ID``; the code is in ``code/0``, ``code/1`` ..."""


def _entries(number: LoadedMap) -> str:
    """As many entries as a page holds: key and value; of per-instance arrays the instance, too."""
    made, room = number.map, ENTRY_CHARS
    lines: list[str] = []
    if isinstance(made, InstanceArrayMap):
        rows = (
            f"{index} {instance} {value.hex()}" for index in range(made.max_entries)
            for instance, value in sorted(made.of(index).items())
        )  # fmt: skip
    elif isinstance(made, ArrayMap):
        rows = (f"{index} {made[index].hex()}" for index in range(made.max_entries))
    elif isinstance(made, HashMap):
        rows = (f"{key.hex()} {value.hex()}" for key, value in made.items())
    else:
        return ""
    for line in rows:
        if len(line) >= room:
            return "\n".join([*lines, "..."])
        lines.append(line)
        room -= len(line) + 1
    return "\n".join(lines)


def _count(number: LoadedMap) -> int:
    made = number.map
    return len(made) if isinstance(made, HashMap) else made.max_entries


MAP: Final = attribute_table(
    _field("name", lambda m: m.map.name), _field("kind", lambda m: m.map.kind), _field("owner", _owner),
    _field("key_bytes", lambda m: m.map.key_bytes), _field("value_bytes", lambda m: m.map.value_bytes),
    _field("held_bytes", lambda m: m.held_bytes), _field("max_entries", lambda m: m.map.max_entries),
    _field("count", _count), _field("entries", _entries),
    _field("dropped", lambda m: m.map.dropped if isinstance(m.map, RingBuffer) else 0),
    _field("programs", lambda m: "\n".join(map(str, sorted(m.users)))),
    _field("pins", lambda m: "\n".join(sorted(m.pins))), Attribute("pin", store=_pin),
    *elements.ATTRIBUTES,
)  # fmt: skip
"""``/sys/fs/bpf/map/ID``."""


def _unpin(bpf: Bpf, text: str) -> None:
    bpf.unpin(text)


def _memory(bpf: Bpf) -> str:
    held: dict[str, int] = {}
    for each in bpf.held():
        held[_owner(each)] = held.get(_owner(each), 0) + each.held_bytes
    return "\n".join(f"{name} {size_bytes}" for name, size_bytes in sorted(held.items()))


PINNED: Final = attribute_table(Attribute("unpin", store=_unpin), Attribute("memory", show=_memory))
"""``/sys/fs/bpf``: takes the name of a pin; shows bytes of programs and maps by owner."""


def root(bpf: Bpf) -> None:
    """Makes the directory when it is first needed."""
    if not bpf.machine.tree.exists(ROOT):
        bpf.machine.tree.add(ROOT, bpf, PINNED)


def _part(part: int, program: Loaded) -> str:
    return program.program.code[part * CODE_BYTES : (part + 1) * CODE_BYTES].hex()


def add_program(bpf: Bpf, program: Loaded) -> None:
    """Puts a program into the tree."""
    root(bpf)
    tree, path, code = bpf.machine.tree, f"{ROOT}/prog/{program.id}", program.program.code
    tree.add(path, Shown(bpf, program), PROGRAM)
    tree.add(f"{path}/code", program)
    for part in range(-(-len(code) // CODE_BYTES)):
        tree.add_attribute(f"{path}/code", Attribute(str(part), show=partial(_part, part)))


def add_map(bpf: Bpf, made: LoadedMap) -> None:
    """Puts a map into the tree."""
    root(bpf)
    bpf.machine.tree.add(f"{ROOT}/map/{made.id}", Shown(bpf, made), MAP)


def add_pin(bpf: Bpf, name: str, what: Loaded | LoadedMap) -> None:
    """A link to what is pinned."""
    folder = "prog" if hasattr(what, "program") else "map"
    bpf.machine.tree.link(f"{ROOT}/pinned/{name}", f"{ROOT}/{folder}/{what.id}")


def remove(bpf: Bpf, name: str) -> None:
    """Takes an entry out of the tree."""
    if bpf.machine.tree.exists(f"{ROOT}/{name}"):
        bpf.machine.tree.remove(f"{ROOT}/{name}")
