"""The decision site of a volume with threads: which segment is cleaned next, and when hints are no longer followed."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.values import S64_MAX, S64_MIN
from uxk.core.mode import ModeConfig
from uxk.kernel.kernel import Kernel
from uxk.limits import PPM
from uxk.subsystems.emergency import Trigger
from uxk.subsystems.lfs.hint import decode_hint
from uxk.subsystems.lfs.timed.config import Choice
from uxk.subsystems.lfs.timed.volume import StepVolume
from uxk.uapi.ml import Mode

SEALED: Final = np.dtype([("segment", "<u4"), ("live", "<u4"), ("age", "<i8")])
"""Dataset ``sealed``: segments that may be victims, their valid blocks, user writes since they were sealed."""


AGE_MAX: Final = 1 << 40
"""Of a segment, as a program sees it: user writes."""


class GcAdvice:
    """Model and site of one volume.

    Hints are followed at every decision in every mode but EMERGENCY, which is the worst case for safety and no
    way to measure what they are worth.  Up to ``alarm`` clean segments there is an emergency.
    """

    def __init__(self, kernel: Kernel, name: str, volume: StepVolume, alarm: int, *, trigger: bool = True) -> None:
        self._machine = kernel.machine
        self._volume = volume
        self._victims: deque[int] = deque()
        self.alarm = alarm
        self.name = name
        config = ModeConfig(learning_share_ppm=PPM, loss_budget_ppm=PPM, calm_epochs=1)
        self.proxy = kernel.create_model("lfs", name, config=config, state=self._state)
        self.site = self.proxy.site(f"{name}.gc", check=self._check)
        schema = Schema([Feature("live", 0, volume.size, "blocks"), Feature("age", 0, AGE_MAX, "writes")])
        self.policy = kernel.policies.offer(self.site, schema, (S64_MIN, S64_MAX), ranked=True)
        """A program that scores each segment that may be cleaned; asked where no hint names one."""
        self._sealed = self.proxy.dataset("sealed", SEALED, volume.segments)
        self.trigger = Trigger(
            lambda critical, why: self.proxy.watermark("clean_segments", critical=critical, why=why),
            lambda: self.proxy.mode is Mode.EMERGENCY, enabled=trigger,
        )  # fmt: skip

    def choose(self, busy_since_ns: int) -> Choice | None:
        """The next recommended victim, or None: the default decides.  Never waits."""
        if not self.site.follows():
            self._victims.clear()
            self.trigger.decided(self._machine.now_ns, busy_since_ns)
            return None
        hint = self.site.take(self._machine.now_ns)
        payload = None if hint is None else decode_hint(hint.payload)
        if hint is not None and payload is not None:
            self._victims = deque(payload.victims)  # in place of what is left of the one before
            self.site.applied(hint, outcome=len(payload.victims))
        return Choice(self._victims.popleft()) if self._victims else self._by_program()

    def _by_program(self) -> Choice | None:
        """What a program in the kernel says: no crossing, on the state of this moment."""
        if self.policy.current is None and self.policy.candidate is None:
            return None
        volume = self._volume
        rows = [
            (segment, live, volume.now - volume.sealed_at[segment]) for segment, live in enumerate(volume.live)
            if live <= volume.most and volume.sealed_at[segment] >= 0
        ]  # fmt: skip
        verdict = self.policy.rank([(live, age) for _, live, age in rows])
        return None if verdict is None else Choice(rows[verdict.value][0])

    def clean_changed(self) -> None:
        """Called in the step that takes or makes a clean segment."""
        clean = len(self._volume.clean)
        self.trigger.look(self._machine.now_ns, clean <= self.alarm, lambda: f"{clean} left, alarm at {self.alarm}")

    def publish(self) -> None:
        """The dataset, as it is now."""
        volume = self._volume
        rows = [
            (segment, live, volume.now - volume.sealed_at[segment])
            for segment, live in enumerate(volume.live)
            if volume.sealed_at[segment] >= 0 and segment != volume.victim
        ]  # fmt: skip
        self._sealed.append(rows)
        self._sealed.publish()

    def epoch(self, user_blocks: int) -> None:
        """Some time has passed: calm epochs end an emergency."""
        self.site.epoch(default_kpi=None, hinted_kpi=None, weight=user_blocks)

    def _check(self, payload: bytes) -> str:
        hint = decode_hint(payload)
        if hint is None or not hint.victims:
            return "malformed"
        in_range = all(0 <= segment < self._volume.segments for segment in hint.victims)
        return "" if in_range else "out_of_range"

    def _state(self) -> dict[str, int | str]:
        return {"clean_segments": len(self._volume.clean), "alarm": self.alarm}

    def results(self) -> dict[str, Any]:
        """The model's figures and the trigger's."""
        return {**self.trigger.results(), "model": self.proxy.report()}
