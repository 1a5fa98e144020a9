"""What faults wait for: a line of the log, an event of the event hash, a state of an instance."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from uxk.core.manifest import canonical
from uxk.kernel.kernel import Kernel
from uxk.uapi.info import Record


class Triggers:
    """Watches a kernel for those who wait.  Looks only; what it starts happens as an event of its own, later."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._on_event: list[Callable[[str, int], bool]] = []
        self._on_record: list[Callable[[Record], bool]] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._sunk = False

    def wait(self, when: str, module: str, begin: Callable[[object], object]) -> Callable[[], None]:
        """Calls ``begin(None)`` soon after ``when`` has come to pass, once.

        ``module`` is the instance of a state that names none.  Returns what ends the wait.  A state counts from the
        next line of the log, or the next event.
        """
        what, _, rest = when.partition(":")

        def fire() -> bool:
            self._kernel.machine.call_later(0, begin)
            return True

        if what == "log":
            heard = _line(rest, fire)
            self._on_record.append(heard)
            self._follow()
            return lambda: self._unheard(heard)
        kind, _, name = rest.partition(":")
        name = canonical(name or (module if what == "state" else ""))
        self._sink()
        if what == "event":
            met = self._event(kind, name, fire)
            self._on_event.append(met)
            return lambda: _forget(self._on_event, met)
        return self._wait_state(kind, name, fire)

    def _event(self, kind: str, name: str, fire: Callable[[], bool]) -> Callable[[str, int], bool]:
        def met(seen: str, instance: int) -> bool:
            agent = self._kernel.agents.get(name)
            fits = seen == kind and (not name or (agent is not None and agent.id == instance))
            return fits and fire()

        return met

    def _wait_state(self, state: str, name: str, fire: Callable[[], bool]) -> Callable[[], None]:
        """Most changes of state are followed by a line of the log, all by something that crosses the boundary."""
        fired: list[bool] = []

        def met(*_: object) -> bool:
            agent = self._kernel.agents.get(name)
            now = "gone" if agent is None else agent.state.initstate
            if now == state and not fired:
                fired.append(fire())
            return bool(fired)

        def end() -> None:
            _forget(self._on_event, met)
            self._unheard(met)

        self._on_event.append(met)
        self._on_record.append(met)
        self._follow()
        return end

    def _sink(self) -> None:
        """Hears of every event, beside whoever records them."""
        if self._sunk:
            return
        self._sunk = True
        events = self._kernel.machine.hash
        before = events.sink

        def sink(now_ns: int, kind: str, instance: int, data: bytes) -> None:
            if before is not None:
                before(now_ns, kind, instance, data)
            if self._on_event:
                self._on_event[:] = [met for met in self._on_event if not met(kind, instance)]

        events.sink = sink

    def _follow(self) -> None:
        """Reads the log from now on, while anybody waits for a line of it."""
        if self._unsubscribe is not None:
            return
        kmsg = self._kernel.kmsg
        reader = kmsg.reader("now")

        def read() -> None:
            for record in reader:
                self._on_record[:] = [heard for heard in self._on_record if not heard(record)]
            self._unheard(None)

        self._unsubscribe = kmsg.subscribe(read)

    def _unheard(self, heard: Callable[[Record], bool] | None) -> None:
        if heard is not None and heard in self._on_record:
            self._on_record.remove(heard)
        if not self._on_record and self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None


def _line(pattern: str, fire: Callable[[], bool]) -> Callable[[Record], bool]:
    """A shell pattern, found anywhere in a line."""
    return lambda record: fnmatchcase(record.text, f"*{pattern}*") and fire()


def _forget(those: list[Callable[..., bool]], one: Callable[..., bool]) -> None:
    if one in those:
        those.remove(one)
