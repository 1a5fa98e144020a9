"""How one task finds out that all others rest: time stands still until they do."""

from __future__ import annotations

from typing import Final

import trio

_QUIET: Final = 2
"""Once would do for tasks; Trio looks at descriptors in between."""


class Rest(trio.abc.Instrument):
    """Waits until all other tasks wait, as trio.testing does, whose import takes as long as all the others here."""

    def __init__(self) -> None:
        self._own: trio.lowlevel.Task | None = None
        self._steps = 0

    def watch(self) -> None:
        """Begins to count the steps of tasks other than the present one."""
        self._own = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's callback."""
        if task is not self._own:
            self._steps += 1

    async def wait(self) -> None:
        """Returns when between two steps of its own, twice in a row, nobody has made one."""
        quiet = 0
        while quiet < _QUIET:
            before = self._steps
            await trio.lowlevel.checkpoint()
            quiet = 0 if self._steps != before else quiet + 1
