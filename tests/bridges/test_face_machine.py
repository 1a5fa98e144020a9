"""A state machine over the tree: a kernel's face and its socket's always agree, with each other and with a model."""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import uxk
from uxk.bridges.control_server import ControlServer
from uxk.bridges.face.api import POLLERR, POLLIN, POLLOUT, POLLPRI, Face, FaceFile
from uxk.bridges.face.memory import MemoryFace
from uxk.bridges.face.socket import SocketFace
from uxk.core.tree import Attribute
from uxk.errors import TreeError

T = TypeVar("T")
BASE = "/sys/t"
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.builds(lambda names: "/".join([BASE, *names]), st.lists(NAMES, max_size=3))
ODD = st.sampled_from([
    "/", "/sys", "/dev", "/dev/kmsg", "/dev/kmsg/x", "/dev/none", "/proc/sys/kernel", "/sys/t/../t", "sys",
    "/sys/t/a\0",
    "/sys/kernel/seed", "/sys/kernel/seed/x", "//", "/sys/t/", "/" + "x" * 300, "/\udcff", "/sys/kernel/costs_ns",
])  # fmt: skip
DATA = st.binary(max_size=6) | st.sampled_from([b"x" * 4096, b"x" * 4097, b"\xff", b"1\n", b"\0", "ü".encode()])


class Open:
    """One attribute, open through both faces."""

    def __init__(self, here: FaceFile, there: FaceFile, path: str, serial: int, seen: int) -> None:
        self.both = (here, there)
        self.path = path
        self.serial = serial
        self.seen = seen


class Faces(RuleBasedStateMachine):
    """A kernel in a thread of its own; each rule is a call into it."""

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.living: dict[str, int] = {}
        self.generations: dict[str, int] = {}
        self.open: list[Open] = []
        ready: list[Any] = []
        started = threading.Event()
        self.thread = threading.Thread(target=trio.run, args=(self._serve, ready, started))
        self.thread.start()
        started.wait()
        self.token, self.stop, self.kernel, self.here, self.there = ready
        self.tree = self.kernel.sysfs
        self.run(self._begin)
        for folder in (BASE, f"{BASE}/a", f"{BASE}/b"):
            self.add_attribute(folder, "c", True)
        self.open_file(f"{BASE}/c", "r")

    async def _serve(self, ready: list[Any], started: threading.Event) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "k")
                async with uxk.Kernel(seed=1) as kernel, trio.open_nursery() as nursery:
                    await nursery.start(ControlServer(kernel, path).serve)
                    async with SocketFace(path) as there:
                        stop = trio.Event()
                        ready += [trio.lowlevel.current_trio_token(), stop, kernel, MemoryFace(kernel), there]
                        started.set()
                        await stop.wait()
                    nursery.cancel_scope.cancel()
        finally:
            started.set()

    async def _begin(self) -> None:
        for path in (BASE, f"{BASE}/a", f"{BASE}/b"):
            self.tree.add(path, {})

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """In the kernel's thread."""
        return trio.from_thread.run(function, trio_token=self.token)

    def teardown(self) -> None:
        async def end() -> None:
            for each in self.open:
                for file in each.both:
                    await file.aclose()
            self.stop.set()

        self.run(end)
        self.thread.join()
        assert self.tree.waiter_count == 0

    def agree(self, operation: Callable[[Face], Awaitable[T]]) -> T | int:
        """The outcome on either face: a value, or an errno."""

        async def both() -> list[T | int]:
            return [await outcome(lambda face=face: operation(face)) for face in (self.here, self.there)]

        here, there = self.run(both)
        assert here == there
        return here

    def change(self, function: Callable[[], T]) -> T | None:
        """Something the kernel's own code does to its tree; it may be impossible."""

        async def act() -> T | None:
            try:
                return function()
            except TreeError:
                return None

        return self.run(act)

    # --- what the kernel does ---

    @rule(path=PATHS)
    def add(self, path: str) -> None:
        self.change(lambda: self.tree.add(path, {}))

    @rule(path=PATHS, name=NAMES, writable=st.booleans())
    def add_attribute(self, path: str, name: str, writable: bool) -> None:
        def act() -> None:
            def store(owner: dict[str, str], text: str) -> None:
                owner[name] = text

            def show(owner: dict[str, str]) -> str:
                return owner.get(name, "")

            folder = self.tree.canonical(path)
            self.tree.add_attribute(path, Attribute(name, show=show, store=store if writable else None))
            self.serial += 1
            self.living[f"{folder}/{name}"] = self.serial
            self.generations[f"{folder}/{name}"] = 0

        self.change(act)

    @rule(path=PATHS)
    @precondition(lambda self: self.living)
    def remove(self, path: str) -> None:
        def act() -> None:
            link = self.tree.stat(path).kind == "link"
            gone = self.tree.canonical(path)
            if path == BASE:
                return
            self.tree.remove(path)
            if not link:
                for each in [each for each in self.living if f"{each}/".startswith(f"{gone}/")]:
                    del self.living[each]

        self.change(act)

    @rule(path=PATHS, to=PATHS)
    def link(self, path: str, to: str) -> None:
        self.change(lambda: self.tree.link(path, to))

    @rule(path=PATHS)
    def notify(self, path: str) -> None:
        def act() -> None:
            self.tree.notify(path)
            path_ = self.tree.canonical(path)
            self.generations[path_] = self.generations.get(path_, 0) + 1

        self.change(act)

    @precondition(lambda self: self.living)
    @rule(
        which=st.integers(0, 99), what=st.sampled_from(["open", "notify", "again", "write", "remove"]),
        read=st.booleans(),
    )  # fmt: skip
    def on_an_attribute(self, which: int, what: str, read: bool) -> None:
        """Paths that are there, more often than by chance; and what open files say of it."""
        path = sorted(self.living)[which % len(self.living)]
        folder, _, name = path.rpartition("/")
        if what in ("remove", "again"):
            self.remove(path)
        if what == "again":
            self.add_attribute(folder, name, True)
        elif what == "notify":
            self.notify(path)
        elif what == "write":
            self.write(path, b"7")
        elif what == "open":
            self.open_file(path, "r")
        for number in range(min(len(self.open), 4)):
            self.use(number, read)

    # --- what users do, through either face ---

    @rule(path=PATHS | ODD)
    def look(self, path: str) -> None:
        for operation in ("read", "readlink", "listdir"):
            self.agree(lambda face, operation=operation: getattr(face, operation)(path))
        kinds = self.agree(lambda face: times_aside(face, path))
        if path in self.living:
            assert isinstance(kinds, tuple) and kinds[0] == "file"

    @rule(path=PATHS | ODD, data=DATA)
    def write(self, path: str, data: bytes) -> None:
        if path == "/dev/kmsg":
            return
        if self.agree(lambda face: face.write(path, data)) is None:
            text = self.agree(lambda face: face.read(path))
            shown = data.removesuffix(b"\n")[:4095]
            assert text == (shown + b"\n" if shown else b"")

    @rule(path=PATHS | ODD, mode=st.sampled_from(["r", "w", "rw", "", "x"]))
    def open_file(self, path: str, mode: str) -> None:
        async def both() -> list[FaceFile | int]:
            return [await outcome(lambda face=face: face.open(path, mode)) for face in (self.here, self.there)]

        here, there = self.run(both)
        if isinstance(here, int) or isinstance(there, int):
            assert here == there
            return
        canonical = self.change(lambda: self.tree.canonical(path))
        if canonical in self.living and mode == "r":
            seen = self.generations[canonical]
            self.open.append(Open(here, there, canonical, self.living[canonical], seen))
            return

        async def close() -> None:
            await here.aclose()
            await there.aclose()

        self.run(close)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99), read=st.booleans())
    def use(self, which: int, read: bool) -> None:
        each = self.open[which % len(self.open)]
        alive = self.living.get(each.path) == each.serial
        news = not alive or self.generations[each.path] != each.seen

        async def act() -> list[Any]:
            found = []
            for file in each.both:
                bits = await file.poll(POLLIN | POLLOUT | POLLPRI)
                found.append((bits, await outcome(file.read) if read else None))
            return found

        here, there = self.run(act)
        assert here == there
        assert here[0] == POLLIN | POLLOUT | (POLLPRI | POLLERR if news else 0)
        if read:
            assert (here[1] == errno.ENODEV) == (not alive)
            if alive:
                each.seen = self.generations[each.path]

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        each = self.open.pop(which % len(self.open))

        async def act() -> None:
            for file in each.both:
                await file.aclose()
                assert await outcome(file.read) == errno.EBADF

        self.run(act)

    @invariant()
    def nobody_is_left_waiting(self) -> None:
        assert self.run(self._waiters) == 0

    async def _waiters(self) -> int:
        return int(self.tree.waiter_count)


async def outcome(operation: Callable[[], Awaitable[T]]) -> T | int:
    """A value, or the errno of a TreeError; nothing else may be raised."""
    try:
        return await operation()
    except TreeError as exc:
        return exc.errno


async def times_aside(face: Face, path: str) -> tuple[Any, ...]:
    """Each face has its own idea of when something changed."""
    stat = await face.stat(path)
    return (stat.kind, stat.mode, stat.uid, stat.gid, stat.size_bytes, stat.id, stat.stored)


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking boots a kernel for each attempt, and takes minutes."""
Faces.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, phases=PHASES)
TestFaces = Faces.TestCase
