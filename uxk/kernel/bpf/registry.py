"""The programs and maps of a kernel: loaded by number, attached to points by name, kept while somebody needs them.

After bpf(2): who loads a program owns it, until that owner is gone or gives it up; what is attached or pinned stays.
A program is verified against the attach point that it is loaded for.  Agents need a capability ``bpf:POINT`` with
*write* to load for a point and *submit* to attach there; callers inside the kernel need none.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from uxk.bpf.errors import BpfError
from uxk.bpf.maps import ArrayMap, Map
from uxk.bpf.program import Program
from uxk.bpf.proto import Spec
from uxk.core.caps import Capability, covers
from uxk.core.kobject import brief
from uxk.core.manifest import name_problem
from uxk.core.ratelimit import TokenBucket
from uxk.core.suggest import did_you_mean
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.bpf import functions, views
from uxk.kernel.bpf.charge import longest
from uxk.kernel.bpf.loaded import Loaded, LoadedMap, map_bytes
from uxk.kernel.machine import Machine
from uxk.kernel.mllib import MlLib
from uxk.kernel.models import Models
from uxk.uapi import entries as e
from uxk.uapi.rights import Rights

PROGRAMS_MAX: Final = 1024
MAPS_MAX: Final = 4096
OWNED_MAX: Final = 64
"""Programs of one instance."""
OWNED_MAX_BYTES: Final = 4 << 20
"""Of the programs and maps of one instance: it is the kernel's memory."""
ARRAYS_MAX_BYTES: Final = 1 << 20
"""Of the maps of one program that an agent loads."""
PINS_MAX: Final = 1024
LOADS_PER_S: Final = 100
LOADS_BURST: Final = 32
"""Programs that an agent may have verified, as a rate and at once: refused ones take host time as well."""
HANDOVER_NS: Final = 10_000_000
"""After a hot upgrade: how long programs of the build before stay for the new one to replace them."""
FOLLOWED_MAX: Final = 100_000
"""Instructions that the verifier follows for an agent's program: verification takes host time."""


class Point(Protocol):
    """Where a program can be attached."""

    name: str
    """As in ``site/lfs0.gc``."""
    spec: Spec
    commands: bool
    """Whether programs here may start and stop models."""
    exclusive: bool
    """Whether one program at most is attached."""

    @property
    def gone(self) -> bool:
        """Whether what it belongs to is not there any more."""
        ...

    def attach(self, program: Loaded, instead: Loaded | None = None) -> None:
        """Puts it in force, in the place of another if one is named, or raises."""
        ...

    def detach(self, program: Loaded, why: str) -> None:
        """Takes it out of force."""
        ...


class Bpf:
    """Programs, maps, pins and attach points; ``kernel.bpf`` is the one of a kernel."""

    def __init__(self, machine: Machine, models: Models) -> None:
        self.machine = machine
        self.models = models
        self.points: dict[str, Point] = {}
        self.programs: dict[int, Loaded] = {}
        self.maps: dict[int, LoadedMap] = {}
        self.pinned: dict[str, Loaded | LoadedMap] = {}
        self.find_point: list[Callable[[str], Point | None]] = []
        """Make points that nobody has offered: queues and instances."""
        self.on_revoked: list[Callable[[Capability], object]] = []
        """Hear of capabilities that end, before what their holder owns is given up."""
        self._lib = MlLib(models)
        self._last_program = self._last_map = 0
        self._loads: dict[int, TokenBucket] = {}
        machine.on_gone.append(self._gone)
        machine.caps.on_delete["bpf"] = self._revoked

    def __iter__(self) -> Iterator[Loaded]:
        return iter(list(self.programs.values()))

    # --- points ---

    def add_point(self, point: Point) -> None:
        """Programs may be attached there from now on.  EEXIST."""
        if point.name in self.points:
            raise UsageError(f"bpf: {point.name}: is an attach point already", errno=errno.EEXIST)
        self.points[point.name] = point

    def remove_point(self, name: str, why: str) -> None:
        """The point is gone: what was attached there is attached no more."""
        point = self.points.pop(name, None)
        for program in list(self.programs.values()):
            if point is not None and name in program.attached:
                self._detach(program, point, why)
                self._drop_unneeded(program, why)

    def point(self, name: str) -> Point:
        """The attach point of that name; ENODEV."""
        found = self.points.get(name)
        if found is not None and found.gone:
            self.remove_point(name, "it is gone")
            found = None
        if found is None:
            for find in self.find_point:
                found = find(name)
                if found is not None:
                    self.points[name] = found
                    return found
            raise UsageError(f"bpf: no attach point {name!r}{did_you_mean(name, self.points)}", errno=errno.ENODEV)
        return found

    def check(self, agent: KernelAgent, point: str, *rights: Rights) -> None:
        """Raises CapabilityError unless an agent has all of these rights there."""
        for right in rights:
            if self.machine.caps.find(agent.id, "bpf", point, right) is None:
                word = (right.name or "").lower()
                raise CapabilityError(f"bpf: {agent.name}'s manifest does not ask for bpf:{brief(point)}:{word}")

    # --- maps ---

    def add_map(self, made: Map, owner: KernelAgent | None = None) -> LoadedMap:
        """Gives a map a number.  ENOSPC."""
        if len(self.maps) >= MAPS_MAX:
            raise UsageError(f"bpf: {MAPS_MAX} maps at most", errno=errno.ENOSPC)
        self._check_memory(owner, map_bytes(made))
        self._last_map += 1
        found = self.maps[self._last_map] = LoadedMap(self._last_map, made, owner)
        views.add_map(self, found)
        return found

    def map(self, number: int) -> LoadedMap:
        """The map of that number; ENOENT."""
        found = self.maps.get(number)
        if found is None:
            raise UsageError(f"bpf: no map {number}", errno=errno.ENOENT)
        return found

    def memory_of(self, owner: KernelAgent | None) -> int:
        """Bytes of an instance's programs and maps; None: of the kernel's own."""
        return sum(each.held_bytes for each in self.held() if each.owner is owner)

    def held(self) -> Iterator[Loaded | LoadedMap]:
        """All programs and maps."""
        yield from self.programs.values()
        yield from self.maps.values()

    def _check_memory(self, owner: KernelAgent | None, more_bytes: int) -> None:
        if owner is not None and self.memory_of(owner) + more_bytes > OWNED_MAX_BYTES:
            raise UsageError(
                f"bpf: {owner.name} has {self.memory_of(owner)} bytes, {more_bytes} more are over {OWNED_MAX_BYTES}",
                errno=errno.ENOMEM,
            )

    def drop_map(self, each: LoadedMap) -> None:
        """Its loader gives it up; it goes with its last program and its last pin."""
        if not each.users and not each.pins and each.id in self.maps:
            del self.maps[each.id]
            views.remove(self, f"map/{each.id}")

    # --- programs ---

    def load(
        self, code: bytes, at: str, maps: Mapping[int, LoadedMap] | None = None, name: str = "", *,
        owner: KernelAgent | None = None,
    ) -> Loaded:  # fmt: skip
        """Verifies a program for the attach point ``at``; ``maps`` are by the numbers that its bytecode has.

        ``VerifierError`` or ``BpfError`` (EINVAL), CapabilityError (EACCES) for an owner without *write* there,
        ENODEV for no such point, ENOSPC.
        """
        machine, maps = self.machine, maps or {}
        if owner is not None:
            self.check(owner, at, Rights.WRITE)
        point = self.point(at)
        if len(self.programs) >= PROGRAMS_MAX:
            raise UsageError(f"bpf: {PROGRAMS_MAX} programs at most", errno=errno.ENOSPC)
        if owner is not None:
            self._check_share(owner, len(code))
        name = name or "prog"
        if problem := name_problem(name):
            raise BpfError(f"program: {problem}")
        references = functions.References(self._lib)

        def may_control(model: str) -> bool:
            return owner is None or machine.caps.find(owner.id, "model", model, Rights.WRITE) is not None

        spec = point.spec if owner is None else point.spec._replace(insns_max=FOLLOWED_MAX)
        program = Program(
            code, spec, maps={number: each.map for number, each in maps.items()}, name=name,
            helpers=functions.helpers(machine, name),
            kfuncs=functions.kfuncs(
                machine, self._lib, references, commands=point.commands, may_control=may_control
            ),
        )  # fmt: skip
        bound = longest(program.proof)
        self._last_program += 1
        loaded = Loaded(
            self._last_program, program, at, point.spec, maps, owner, references, bound, machine.now_ns
        )  # fmt: skip
        self.programs[loaded.id] = loaded
        for each in maps.values():
            each.users.add(loaded.id)
        views.add_program(self, loaded)
        self.tell(loaded, f"loaded for {at}: {len(program.proof.insns)} instructions, at most {bound} a run")
        return loaded

    def _check_share(self, owner: KernelAgent, size_bytes: int) -> None:
        """What one instance may have of the kernel's programs, memory and time."""
        if sum(each.owner is owner for each in self.programs.values()) >= OWNED_MAX:
            raise UsageError(f"bpf: {owner.name}: {OWNED_MAX} programs at most", errno=errno.ENOSPC)
        self._check_memory(owner, size_bytes)
        now_ns = self.machine.now_ns
        bucket = self._loads.setdefault(owner.id, TokenBucket(LOADS_PER_S, LOADS_BURST, now_ns=now_ns))
        if not bucket.take(now_ns):
            raise UsageError(f"bpf: {owner.name}: {LOADS_PER_S} programs a second at most", errno=errno.EAGAIN)

    def program(self, number: int) -> Loaded:
        """The program of that number; ENOENT."""
        found = self.programs.get(number)
        if found is None:
            raise UsageError(f"bpf: no program {number}", errno=errno.ENOENT)
        return found

    def attach(self, program: Loaded, at: str = "", *, instead: Loaded | None = None) -> None:
        """Attaches it where it was loaded for, or at another point that asks for the same.

        With ``instead``, in one step in the place of a program that is attached there.  EINVAL if the point asks for
        something else, EBUSY if another is there and one at most can be, EEXIST, EACCES, ENOENT for ``instead``.
        """
        name = at or program.at
        self._check_loaded(program)
        if program.owner is not None:
            self.check(program.owner, name, Rights.SUBMIT)
        point = self.point(name)
        if name in program.attached:
            raise UsageError(f"bpf: program {program.id} is attached to {name} already", errno=errno.EEXIST)
        if point.spec != program.spec:
            raise UsageError(f"bpf: program {program.id} was verified for {program.at}; {name} asks for something else")
        there = next((each for each in self.programs.values() if name in each.attached), None)
        if point.exclusive and there is not None:
            raise UsageError(f"bpf: program {there.id} ({there.name}) is attached to {name}", errno=errno.EBUSY)
        if instead is not None and name not in instead.attached:
            raise UsageError(f"bpf: program {instead.id} is not attached to {name}", errno=errno.ENOENT)
        if instead is None:
            point.attach(program)
        else:
            point.attach(program, instead)
        program.attached.add(name)
        if instead is not None:
            instead.attached.discard(name)
            self.tell(instead, f"detached from {name}: program {program.id} takes its place")
            self._drop_unneeded(instead, "replaced")
        self.tell(program, f"attached to {name}")

    def detach(self, program: Loaded, at: str = "", why: str = "detached") -> None:
        """Takes it out of force; ENOENT if it is not attached there.  One that nobody needs any more is unloaded."""
        name = at or program.at
        if name not in program.attached:
            raise UsageError(f"bpf: program {program.id} is not attached to {name}", errno=errno.ENOENT)
        point = self.points[name]
        self._detach(program, point, why)
        if not point.exclusive:  # what was injected ends by itself
            self._drop_unneeded(program, why)

    def _drop_unneeded(self, program: Loaded, why: str) -> None:
        """An agent cannot unload: what it has loaded goes when it is attached nowhere and not pinned."""
        if program.owner is not None and not program.attached and not program.waits:
            self.give_up(program, why)

    def _detach(self, program: Loaded, point: Point, why: str) -> None:
        program.attached.discard(point.name)
        point.detach(program, why)
        self.tell(program, f"detached from {point.name}: {why}")

    def unload(self, program: Loaded) -> None:
        """Its loader gives it up.  EBUSY while it is attached or pinned."""
        if program.attached or program.pins:
            raise UsageError(
                f"bpf: program {program.id} is in use: {', '.join(sorted(program.attached | program.pins))}",
                errno=errno.EBUSY,
            )
        if self.programs.pop(program.id, None) is not None:
            views.remove(self, f"prog/{program.id}")
            for each in program.maps.values():
                each.users.discard(program.id)
                self.drop_map(each)
            self.tell(program, "unloaded")

    # --- pins ---

    def pin(self, what: Loaded | LoadedMap, name: str) -> None:
        """Keeps a program, or a map, after its owner: ``/sys/fs/bpf/pinned/NAME``.  A pinned program stays attached.

        EEXIST, EINVAL.
        """
        if problem := name_problem(name):
            raise UsageError(f"bpf: pin: {problem}")
        self._check_loaded(what)
        if len(self.pinned) >= PINS_MAX:
            raise UsageError(f"bpf: {PINS_MAX} pins at most", errno=errno.ENOSPC)
        if name in self.pinned:
            raise UsageError(f"bpf: pin: {name!r} is taken", errno=errno.EEXIST)
        self.pinned[name] = what
        what.pins.add(name)
        views.add_pin(self, name, what)

    def _check_loaded(self, what: Loaded | LoadedMap) -> None:
        known: Mapping[int, object] = self.programs if isinstance(what, Loaded) else self.maps
        if known.get(what.id) is not what:
            kind = "program" if isinstance(what, Loaded) else "map"
            raise UsageError(f"bpf: {kind} {what.id} is not loaded any more", errno=errno.ENOENT)

    def unpin(self, name: str) -> None:
        """Takes a pin away; what nobody needs any more goes.  ENOENT."""
        what = self.pinned.pop(name, None)
        if what is None:
            raise UsageError(f"bpf: no pin {name!r}{did_you_mean(name, self.pinned)}", errno=errno.ENOENT)
        what.pins.discard(name)
        views.remove(self, f"pinned/{name}")
        if isinstance(what, LoadedMap):
            self.drop_map(what)
        elif what.owner is not None and what.incarnation != what.owner.incarnation and not what.pins:
            self.give_up(what, f"{what.owner.name} is gone")
        else:
            self._drop_unneeded(what, "unpinned")

    def give_up(self, program: Loaded, why: str) -> None:
        """Detaches and unloads a program, unless it is pinned."""
        if not program.pins and program.id in self.programs:
            for name in list(program.attached):
                self._detach(program, self.points[name], why)
            self.unload(program)

    # --- capabilities that end ---

    def _revoked(self, cap: Capability) -> None:
        """Without a capability an agent has nothing loaded that is not pinned."""
        for tell in self.on_revoked:
            tell(cap)
        for program in list(self.programs.values()):
            owner = program.owner
            if owner is None or not self.concerns(cap, owner, program.incarnation):
                continue
            if not covers(cap.target, program.at):
                continue
            if not self.still_allowed(cap, program.at):
                why = f"{owner.name} is gone" if owner.host is None else f"{owner.name} may not any more"
                self.give_up(program, why)
            elif self.machine.caps.is_aside(cap) and not program.left:
                self._leave(program)

    def concerns(self, cap: Capability, owner: KernelAgent, incarnation: int) -> bool:
        """Whether the end of a capability is about what this incarnation has: there may be two of an instance."""
        if owner.id != cap.holder:
            return False
        aside = owner.aside
        return aside is None or (incarnation == aside.incarnation) == self.machine.caps.is_aside(cap)

    def _leave(self, program: Loaded) -> None:
        """Its build has been upgraded: it goes with the first that the new one loads there, or a little later."""
        program.left = True
        if any(each.owner is program.owner and each.at == program.at and not each.left for each in self):
            self.give_up(program, "another build has loaded its own")
        else:
            machine = self.machine
            machine.heap.call_at_daemon(machine.now_ns + HANDOVER_NS, self._left_too_long, program)

    def _left_too_long(self, program: Loaded) -> None:
        if program.left:
            self.give_up(program, "its build is gone")

    def _gone(self, instance: int) -> None:
        self._loads.pop(instance, None)

    def still_allowed(self, gone: Capability, point: str) -> bool:
        """Whether the holder of a capability that ends may load and attach at a point all the same."""
        held = [each for each in self.machine.caps.held(gone.holder) if each.id != gone.id and each.kind == "bpf"]
        both = (Rights.WRITE, Rights.SUBMIT)
        return all(any(each.rights & right and covers(each.target, point) for each in held) for right in both)

    # --- for agents ---

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.LoadProgram: self._load}

    def _load(self, agent: KernelAgent, entry: e.LoadProgram) -> tuple[int, bytes]:
        self.check(agent, entry.at, Rights.WRITE, Rights.SUBMIT)
        if self.point(entry.at).exclusive:
            raise UsageError(f"bpf: {entry.at}: takes injected programs only, which have to prove themselves")
        before = self._replaced(agent, entry)
        if sum(size * count for size, count in entry.arrays) > ARRAYS_MAX_BYTES:
            raise UsageError(f"bpf: {entry.at}: maps of more than {ARRAYS_MAX_BYTES} bytes", errno=errno.ENOMEM)
        made = [ArrayMap(size, count, f"{agent.name}-{number}") for number, (size, count) in enumerate(entry.arrays)]
        maps: dict[int, LoadedMap] = {}
        try:
            for number, each in enumerate(made):
                maps[number] = self.add_map(each, agent)
            program = self.load(entry.code, entry.at, maps, agent.name, owner=agent)
        except UsageError:
            for loaded in maps.values():
                self.drop_map(loaded)
            raise
        self.attach(program, instead=before)
        return program.id, b""

    def _replaced(self, agent: KernelAgent, entry: e.LoadProgram) -> Loaded | None:
        """The program that a new one takes the place of: the one that is named, or one of the build before."""
        mine = [each for each in self if each.owner is agent and entry.at in each.attached]
        if not entry.replaces:
            return next((each for each in mine if each.left), None)
        for each in mine:
            if each.id == entry.replaces:
                return each
        raise UsageError(f"bpf: {agent.name} has no program {entry.replaces} at {entry.at}", errno=errno.ENOENT)

    # --- log ---

    def tell(self, program: Loaded, what: str, **fields: Any) -> None:
        """One transaction: a kmsg line, and part of the event hash."""
        self.log(f"program {program.id} ({program.name}) {what}", owner=program.owner, program=program.id, **fields)

    def log(self, text: str, *, owner: KernelAgent | None = None, bad: bool = False, **fields: int | str) -> None:
        """As :meth:`tell`, without a program."""
        text = text[:1000]
        self.machine.log("warning" if bad else "notice", "bpf", text, **fields)
        self.machine.note("bpf", 0 if owner is None else owner.id, text.encode())
