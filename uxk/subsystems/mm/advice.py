"""The decision site of the flusher: which file is written next, and when hints are no longer followed."""

from __future__ import annotations

from collections import deque
from typing import Any

from uxk.core.mode import ModeConfig
from uxk.kernel.kernel import Kernel
from uxk.limits import PPM
from uxk.subsystems.emergency import Trigger
from uxk.subsystems.mm.hint import FILES, decode_hint
from uxk.subsystems.mm.memory import Memory
from uxk.uapi.ml import Mode


class WritebackAdvice:
    """Model and site of one zone of memory; ``files`` is how many files there are.

    An emergency is when free pages are down to ``min``, or dirty pages up to their limit.
    """

    def __init__(self, kernel: Kernel, name: str, memory: Memory, files: int, *, trigger: bool = True) -> None:
        self._machine = kernel.machine
        self._memory = memory
        self._files = files
        self._next: deque[int] = deque()
        config = ModeConfig(learning_share_ppm=PPM, loss_budget_ppm=PPM, calm_epochs=1)
        self.proxy = kernel.create_model("mm", name, config=config, state=self._state)
        self.site = self.proxy.site(f"{name}.writeback", check=self._check)
        self._dataset = self.proxy.dataset("files", FILES, files)
        self.trigger = Trigger(
            lambda critical, why: self.proxy.watermark("memory", critical=critical, why=why),
            lambda: self.proxy.mode is Mode.EMERGENCY, enabled=trigger,
        )  # fmt: skip

    def choose(self, busy_since_ns: int) -> int:
        """The file to write next, or -1: the default decides.  Never waits."""
        if not self.site.follows():
            self._next.clear()
            self.trigger.decided(self._machine.now_ns, busy_since_ns)
            return -1
        hint = self.site.take(self._machine.now_ns)
        payload = None if hint is None else decode_hint(hint.payload)
        if hint is not None and payload is not None:
            self._next = deque(payload.files)  # in place of what is left of the one before
            self.site.applied(hint, outcome=len(payload.files))
        return self._next.popleft() if self._next else -1

    def pressure(self) -> None:
        """Called in the step that comes to a watermark, and in the next ones."""
        zone, limits = self._memory.zone, self._memory.limits
        critical = zone.free <= zone.marks.min or zone.dirty >= limits.limit
        self.trigger.look(
            self._machine.now_ns, critical,
            lambda: f"{zone.free} pages free, min {zone.marks.min}; {zone.dirty} dirty, limit {limits.limit}",
        )  # fmt: skip

    def publish(self) -> None:
        """The dataset, as it is now."""
        self._dataset.append([(file, self._memory.cache.dirty_count(file)) for file in range(self._files)])
        self._dataset.publish()

    def epoch(self, pages: int) -> None:
        """Some time has passed: calm epochs end an emergency."""
        self.pressure()
        self.site.epoch(default_kpi=None, hinted_kpi=None, weight=pages)

    def _check(self, payload: bytes) -> str:
        hint = decode_hint(payload)
        if hint is None or not hint.files:
            return "malformed"
        return "" if all(0 <= file < self._files for file in hint.files) else "out_of_range"

    def _state(self) -> dict[str, int | str]:
        zone = self._memory.zone
        return {"free": zone.free, "dirty": zone.dirty}

    def results(self) -> dict[str, Any]:
        """The model's figures and the trigger's."""
        return {**self.trigger.results(), "model": self.proxy.report()}
