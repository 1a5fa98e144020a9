"""Faults that a device does to itself: rules written to an attribute of its module when their time comes.

The language is the module's.  Nobody answers a write of an attribute, so a module that can refuse one publishes a
second attribute, ``NAME_status``: the number of writes heard, and ``ok`` or ``error: ...`` for the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, TreeError
from uxk.faults.strike import Striker
from uxk.kernel.kernel import Kernel

ID_BASE: Final = 1000
"""Rules of a plan are numbered from here on, so that those added by hand keep their numbers."""

OnAnswer: TypeAlias = Callable[[str], object]
"""Hears what was wrong with a write, or ``""``."""


class Channel:
    """Writes to one attribute, one at a time: the next when the module has answered the last."""

    def __init__(self, kernel: Kernel, module: str, attribute: str) -> None:
        self._kernel = kernel
        self._directory = f"/sys/module/{module}/attributes"
        self.path = f"{self._directory}/{attribute}"
        self._status_path = f"{self.path}_status"
        self._waiting: deque[tuple[str, OnAnswer]] = deque()
        self._open: OnAnswer | None = None
        self._heard = 0
        self._cancel: Callable[[], None] | None = None

    def check(self) -> str:
        """What is in the way of writing, or ``""``."""
        tree = self._kernel.machine.tree
        if tree.exists(self.path):
            return ""
        names = tree.listdir(self._directory) if tree.exists(self._directory) else []
        name = self.path.rpartition("/")[2]
        return f"no attribute {self.path}{did_you_mean(name, names)}; published are: {', '.join(names) or 'none'}"

    def read(self) -> str:
        """The attribute's text; ``""`` if it is not there."""
        try:
            return self._kernel.machine.tree.read(self.path)
        except TreeError:
            return ""

    def write(self, text: str, on_answer: OnAnswer) -> None:
        """Writes ``text`` when those before it are answered."""
        self._waiting.append((text, on_answer))
        if self._open is None:
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            return
        text, self._open = self._waiting.popleft()
        tree = self._kernel.machine.tree
        answers = tree.exists(self._status_path)
        try:
            if answers:
                self._heard = self._status()[0]
                self._cancel = tree.poll(self._status_path, self._look)
            tree.write(self.path, text, writer="fault")
        except TreeError as exc:
            self._answer(str(exc))
        else:
            if not answers:
                self._answer("")

    def _status(self) -> tuple[int, str]:
        number, _, rest = self._kernel.machine.tree.read(self._status_path).partition(" ")
        return (int(number) if number.isdecimal() else 0), rest

    def _look(self) -> None:
        try:
            heard, outcome = self._status()
        except TreeError:
            self._answer("the module is gone, and has not answered")
            return
        if heard != self._heard:
            self._answer(outcome.removeprefix("error: ") if outcome != "ok" else "")

    def _answer(self, problem: str) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        answered, self._open = self._open, None
        if answered is not None:
            answered(problem)
        self._next()


class DeviceFault:
    """One device fault of a running plan."""

    def __init__(self, kernel: Kernel, striker: Striker, channel: Channel, instance: str) -> None:
        self._kernel = kernel
        self._striker = striker
        self._channel = channel
        self._instance = instance
        self.failure = ""
        """Why it did not come to pass."""
        self._pending = 0
        self._struck = 0

    def check(self) -> None:
        """ConfigError if the module does not publish the attribute."""
        if problem := self._channel.check():
            raise ConfigError(f"faults[{self._striker.index}]: {problem}")

    def start(self) -> None:
        """Its times count from now."""
        heap, fault, now_ns = self._kernel.machine.heap, self._striker.fault, self._kernel.machine.now_ns
        heap.call_at(now_ns + fault.at_ns, self._begin, None)
        if fault.until_ns:
            heap.call_at_daemon(now_ns + fault.until_ns, self._end, None)

    @property
    def _number(self) -> int:
        return ID_BASE + self._striker.index

    def _begin(self, _: object) -> None:
        fault = self._striker.fault
        agent = self._kernel.agents.get(self._instance)
        if agent is None:
            self.failure = self._place("the module is not loaded any more")
            return
        self._striker.note(agent, fault.rule)
        text = f"add id={self._number} {fault.rule}" if fault.attribute == "faults" else fault.rule
        self._write(text)

    def _end(self, _: object) -> None:
        """A rule that a dead instance took along is gone already, and so are other attributes' values."""
        if self._striker.fault.undo:
            if self._instance in self._kernel.agents and not self._channel.check():
                self._write(self._striker.fault.undo)
            return
        line = self._line()
        if line:
            self._struck = _fired(line)
            self._write(f"rm {self._number}")

    def _write(self, text: str) -> None:
        self._pending += 1
        self._channel.write(text, self._heard)

    def _heard(self, problem: str) -> None:
        self._pending -= 1
        if problem and not self.failure:
            self.failure = self._place(problem)

    def _place(self, problem: str) -> str:
        fault = self._striker.fault
        return f"faults[{self._striker.index}] at {fault.at_ns} ns: {self._instance}, {fault.rule!r}: {problem}"

    def _line(self) -> str:
        """The rule's line in what the module publishes."""
        if self._striker.fault.attribute != "faults":
            return ""
        mark = f"id={self._number}"
        return next((line for line in self._channel.read().splitlines() if mark in line.split()), "")

    @property
    def struck(self) -> int:
        """How many commands the rule has struck, as far as the module says; without a rule, how often it was told."""
        if self._striker.fault.attribute != "faults":
            return self._striker.fired
        line = self._line()
        return _fired(line) if line else self._struck

    def problem(self) -> str:
        """Why the fault failed, or ``""``; at the end of a run, silence of the module is a failure."""
        if not self.failure and self._pending:
            return self._place("written, but the module has not answered")
        return self.failure


def _fired(line: str) -> int:
    """The counter in a rule's line; 0 without one."""
    found = [word.removeprefix("fired=") for word in line.split() if word.startswith("fired=")]
    return int(found[-1]) if found and found[-1].isdecimal() else 0
