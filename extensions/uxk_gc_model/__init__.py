"""A learning agent whose policy runs in the kernel: which segment to clean next, as injected bytecode.

It follows segments from epoch to epoch and learns, with river, how the rate at which their blocks die depends on their
age.  Cleaning pays where there is much garbage, little to move, and what is moved will not die soon; cost-benefit
takes 1/age for the rate at which it dies, and the score here the mean (of logarithms) of that and of what was learned.
The score is a linear regression of river's over what the kernel shows of a segment.  It is compiled to integers,
injected, judged in the shadow, and decides from then on without a crossing; it is injected anew when what was learned
has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from river import linear_model, stats

import uxk
from uxk.bpf.compiler.compile import compile_model
from uxk.bpf.compiler.models import Options
from uxk.subsystems.lfs.rows import SCHEMA, Rows, feature_rows
from uxk.uapi import ml

SITE: Final = "lfs0.gc"
SCALE: Final = 1 << 16
"""What 1 of a score becomes: a tie in integers is one in floating point."""
OCTAVE: Final = 256
LESSONS_MIN: Final = 512
"""Segments followed for an epoch before there is a policy."""
MOVED: Final = 0.05
"""Change of the weight of age that is worth another program."""


class GcModelParams(uxk.Params):
    """Whose arithmetic decides."""

    backend: Annotated[
        Literal["bytecode", "float"],
        uxk.param(help="bytecode, or for comparisons the float model in its place, which only a study can call"),
    ] = "bytecode"
    bits: Annotated[int, uxk.param(ge=1, le=30, help="of each weight's mantissa in the bytecode")] = 30
    trust: Annotated[int, uxk.param(ge=0, le=100, help="weight of what was learned beside 1/age, in per cent")] = 50


class GcModel(uxk.MLAgent[GcModelParams]):
    """Learns, compiles, injects, and judges."""

    manifest = uxk.Manifest(
        name="gc_model", version="0.1.0", author="The uxk authors", license="Apache-2.0",
        description="garbage collection by an injected model", kind="ml-agent", alias=("uxk_gc_model",),
        params=GcModelParams, capabilities=(f"bpf:site/{SITE}",),
    )  # fmt: skip
    model = "lfs0"
    checkpoint_every = 0

    def setup(self, ctx: uxk.Context) -> None:
        """Nothing is known before the first dataset."""
        self.lessons = 0
        self.injected = 0
        self._together, self._spread = stats.Cov(), stats.Var()
        self._segments: npt.NDArray[Any] | None = None
        self._before: npt.NDArray[Any] | None = None
        self._now_before = 0
        self._waiting = False
        """Whether a program is in the shadow."""
        self._latest: Any = None
        self._weight = 0.0
        """Of age, in the latest program."""
        self._judges: dict[int, Any] = {}
        """The model of each injection."""
        self._by_code: dict[bytes, Any] = {}

    # --- learning ---

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        """``segments`` come before ``state``, epoch by epoch."""
        if dataset.name == "segments":
            self._segments = dataset.rows.copy()
        elif dataset.name == "state" and self._segments is not None:
            state = {name: int(dataset.rows[name][0]) for name in dataset.rows.dtype.names or ()}
            size = int(self._segments["used"].max(initial=1))
            self._learn(self._segments, state["now"], size, state["pages"])
            if self.lessons >= LESSONS_MIN and not self._waiting:
                self._inject(ctx)

    def _learn(self, segments: npt.NDArray[Any], now: int, size: int, pages: int) -> None:
        """Each segment that was there an epoch ago is a lesson: its age then, and the share of blocks that died."""
        before, self._before = self._before, segments[(segments["age"] >= 0) & (segments["live"] > 0)]
        then, self._now_before = self._now_before, now
        if before is None:
            return
        here = {int(each["segment"]): (now - int(each["age"]), int(each["live"])) for each in segments}
        for each, row in zip(before, feature_rows(before, size, pages).tolist(), strict=True):
            sealed, live = here.get(int(each["segment"]), (-1, 0))
            if sealed == then - int(each["age"]):
                died = int(each["live"]) - live
                rate = log2((died + 0.3) / (int(each["live"]) + 1))
                age = row[SCHEMA.slot("age")] / OCTAVE
                self._together.update(age, rate)
                self._spread.update(age)
                self.lessons += 1

    def _wanted(self) -> float:
        """The weight of age: between that of cost-benefit, and the slope that was seen."""
        spread, trust = self._spread.get(), self.params.trust / 100
        slope = self._together.get() / spread if spread else 0.0
        return 1 - trust - trust * slope

    # --- injecting ---

    def _inject(self, ctx: uxk.Context) -> None:
        weight = self._wanted()
        if self._latest is not None and abs(weight - self._weight) < MOVED:
            return
        model: Any = linear_model.LinearRegression()
        model._weights.update({"garbage": 1.0, "valid": -1.0, "age": weight})  # river has no other way to set them
        code = compile_model(model, SCHEMA, Options(scale=SCALE, bits=self.params.bits)).code
        self._latest, self._weight, self._waiting = model, weight, True
        self._by_code[code] = model
        self.injected += 1
        ctx.set_attribute("weight_ppm", round(weight * 1_000_000))
        reply = ctx.inject(SITE, code, why=f"age weighs {weight:.3f} after {self.lessons} lessons")
        reply.then(lambda done: self._settled(ctx, done))

    def _settled(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        """In force, or not: then the next epoch's lesson is another chance."""
        self._waiting = False
        if done.status:
            self._latest = None
            ctx.log(f"not injected: {done.payload.decode(errors='replace')}", level=5)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """Heats to judge; and an end of what was in force."""
        super().on_event(ctx, event)
        if event.topic == "shadow":
            shown = ml.decode_shadow(event.value)
            model = self._judges.setdefault(shown.injection, self._latest)
            rows: Rows = np.frombuffer(shown.rows, "<i8").reshape(-1, shown.width)
            ctx.judge(shown.injection, shown.first, _best(model, rows, shown.counts))
        elif event.topic == "policy" and ml.decode_policy(event.value).step is ml.PolicyStep.ENDED:
            ended = ml.decode_policy(event.value).injection
            if self._judges.pop(ended, None) is self._latest:
                self._latest = None

    # --- for comparisons ---

    def float_scores(self, code: bytes) -> Callable[[Sequence[int]], float] | None:
        """The float model that a program was made of, with ``backend=float``: what decides in its place."""
        model = self._by_code.get(code)
        if self.params.backend == "bytecode" or model is None:
            return None
        return lambda row: float(model.predict_one(dict(zip(SCHEMA.names, row, strict=False))))


def _best(model: Any, rows: Rows, counts: Sequence[int]) -> list[int]:
    """The place of the best row of each heat, the first of equals."""
    found, at = list[int](), 0
    for count in counts:
        heat = rows[at : at + count].tolist()
        scores = [model.predict_one(dict(zip(SCHEMA.names, row, strict=True))) for row in heat]
        found.append(scores.index(max(scores)))
        at += count
    return found
