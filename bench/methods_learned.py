"""``python -m bench.methods_learned``: a learned victim selection, as the float model and as injected bytecode.

The model is river's linear regression behind its scaler, trained row by row on what the cost-benefit policy thinks of a
segment, from tables of the volume's preparation; its features are integer logarithms, which the kernel has.  Once with
floating point, called by the kernel as nothing real could; once compiled, verified, run in the shadow of the first and
swapped in.  What the compiled one loses of the indicator is the price of having no floating point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from math import log2
from typing import Any, ClassVar, Final

import msgspec
import trio

import uxk
from bench.methods_agents import SITE, manifest_of
from bench.methods_compiled import CONFIG, Injector
from bench.methods_flow import Setup, Then
from bench.methods_policy import THINK_NS, Answer, rows_of
from bench.methods_run import Outcome, play, prepared
from bench.methods_ways import Compiled, InKernel, Way
from uxk.bpf.compiler.compile import Compiled as Code
from uxk.bpf.compiler.compile import compile_model
from uxk.bpf.compiler.models import Options
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.core.site import DecisionSite

SCALE: Final = 1 << 16
TRAINING: Final = Setup(seed=0)
"""The volume that it learns from is none of those that it is tried on."""
TABLES_EVERY: Final = 20
NAMES: Final = ("garbage", "live", "age")


def logarithm(number: int) -> int:
    """Binary logarithm of ``number`` + 1 with 8 fraction bits, linear between powers of two: integers only."""
    number += 1
    whole = number.bit_length() - 1
    return (whole << 8) + (number << 8 >> whole) - 256


def features(live: int, age: int, size: int) -> tuple[int, int, int]:
    """What the kernel shows of a segment."""
    return logarithm(size - live), logarithm(live), logarithm(age)


def schema(size: int) -> Schema:
    """The ranges of :func:`features`."""
    most = (logarithm(size), logarithm(size), logarithm((1 << 32) - 1))
    return Schema([Feature(name, 0, high) for name, high in zip(NAMES, most, strict=True)])


@cache
def trained(writes: int = 4096) -> Any:
    """The float model; its target is the logarithm of g * age / v."""
    from river import linear_model, optim, preprocessing

    model = preprocessing.StandardScaler() | linear_model.LinearRegression(optimizer=optim.SGD(0.02))
    volume, pages = prepared(TRAINING)
    for number, page in enumerate(pages[:writes]):
        volume.write(page, gc=False)
        while volume.triggered and (victim := volume.select()) >= 0:
            volume.collect(victim)
        for _, live, age in rows_of(volume).tolist() if number % TABLES_EVERY == 0 else ():
            if 0 < live <= volume.most:
                row = dict(zip(NAMES, features(live, age, volume.size), strict=True))
                model.learn_one(row, log2((volume.size - live) * (age + 1) / live))
    return model


@cache
def compiled() -> Code:
    """The same as bytecode."""
    return compile_model(trained(), schema(TRAINING.segment_blocks), Options(scale=SCALE))


def best(rows: Sequence[Sequence[int]]) -> int:
    """The place that the float model likes best, the first of equals."""
    scores = [trained().predict_one(dict(zip(NAMES, row, strict=True))) for row in rows]
    return scores.index(max(scores))


class Float(InKernel):
    """The float model, called by the decision."""

    name: ClassVar[str] = "float model"

    def decide(self, then: Then) -> None:
        """As the stand-in does."""
        now_ns, shape = self.kernel.now_ns, self.cleaner.shape
        rows = [row for row in rows_of(self.volume).tolist() if row[1] <= shape.most]
        self.charged_ns += THINK_NS
        if not rows:
            then(None)
            return
        answer = Answer(now_ns, (rows[best([features(live, age, shape.size) for _, live, age in rows])][0],))
        self.kernel.call_at_ns(now_ns + THINK_NS, then, answer)


class Learner(Injector):
    """Injects what it has learned, and judges it by its float model."""

    manifest = manifest_of("methods_learner", f"bpf:site/{SITE}")

    def setup(self, ctx: uxk.Context) -> None:
        """Sends the bytecode."""
        ctx.inject(SITE, compiled().code, why="a regression")

    def best(self, rows: list[list[int]]) -> int:
        """By the float model."""
        return best(rows)


class Learned(Compiled):
    """The compiled model, injected."""

    name: ClassVar[str] = "compiled model"
    adviser = Learner

    def before_load(self) -> None:
        """A site with the model's features."""
        self.port = self.kernel.policies.offer(
            DecisionSite(SITE, lambda payload: ""), schema(self.cleaner.shape.size), compiled().model.verdict,
            config=CONFIG, ranked=True,
        )  # fmt: skip

    def row(self, live: int, age: int) -> tuple[int, ...]:
        """The features of a segment."""
        return features(live, age, self.cleaner.shape.size)


def run(way: type[Way], base: Setup, seeds: Sequence[int]) -> list[Outcome]:
    """One way with every seed."""
    return [trio.run(play, way, msgspec.structs.replace(base, seed=seed)) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table; the loss is that of write amplification against the float model, 0 is none."""
    parser = argparse.ArgumentParser(prog="python -m bench.methods_learned", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to so many")
    parser.add_argument("--writes", type=int, default=Setup().writes)
    args = parser.parse_args(argv)
    base, seeds = Setup(writes=args.writes), range(1, args.seeds + 1)
    found = {way.name: run(way, base, seeds) for way in (Way, InKernel, Float, Learned)}
    reference = [outcome.wa_ppm for outcome in found[Float.name]]
    print("| policy | write amplification, each seed | loss, ppm | crossings a decision | charged, µs |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, runs in found.items():
        decisions = max(1, sum(each.decisions for each in runs))
        loss = sum((each.wa_ppm - wa) * 1_000_000 // wa for each, wa in zip(runs, reference, strict=True)) // len(runs)
        shown = " ".join(f"{each.wa_ppm / 1e6:.3f}" for each in runs)
        crossings, charged = (
            sum(e.crossings for e in runs) / decisions,
            sum(e.charged_ns for e in runs) / decisions / 1e3,
        )
        print(f"| {name} | {shown} | {loss:,} | {crossings:.2f} | {charged:.1f} |")
    same = sum(a.victims == b.victims for a, b in zip(found[Float.name], found[Learned.name], strict=True))
    size = compiled().model.instructions
    print(f"\nthe same victims in the same order: {same} of {len(seeds)} runs; {size} instructions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
