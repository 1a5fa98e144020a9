"""Whatever an agent does, it costs at most the default's write amplification plus two per cent, and never data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

import uxk
from uxk.scenario.pages.load import PageRun, load_pages
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.hint import GcHint, encode_hint
from uxk.subsystems.lfs.miniature import Miniature, parse_policy
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.subsystem import Lfs
from uxk.testing import boot

PAGES, SEGMENT_BLOCKS = 16_384, 64
BOUND = 1.02
GOOD, BAD = "fadac/cb-age", "nosep/timestamp"


def manifest(name: str, **more: Any) -> uxk.Manifest:
    return uxk.Manifest(
        name=name, version="1", author="test", license="Apache-2.0", description="tries", kind="ml-agent", **more
    )  # fmt: skip


class Agent(uxk.MLAgent[uxk.Params]):
    """Looks at each epoch's state and segments; subclasses say what they do with it."""

    manifest = manifest("steady")
    model, sites = "lfs0", ("lfs0.gc",)
    checkpoint_every = 0

    def setup(self, ctx: uxk.Context) -> None:
        self.epoch = 0
        self.segments: Any = None
        self.news = False

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if dataset.name == "segments":
            self.segments = dataset.rows.copy()
        elif dataset.name == "state":
            self.epoch, self.news = int(dataset.rows["epoch"][0]), True

    def recommend(self, ctx: uxk.Context, site: str) -> Any:
        if not self.news:
            return None
        self.news = False
        return self.advice(ctx)

    def advice(self, ctx: uxk.Context) -> Any:
        return encode_hint(GcHint(GOOD))


class Killed(Agent):
    """Dies again and again, in the middle of its work."""

    manifest = manifest("killed")

    def advice(self, ctx: uxk.Context) -> Any:
        if self.epoch % 40 == 39:
            raise RuntimeError("killed")
        return super().advice(ctx)


class Hung(Agent):
    """Says one thing, and then nothing any more."""

    manifest = manifest("hung")

    def advice(self, ctx: uxk.Context) -> Any:
        return super().advice(ctx) if self.epoch < 60 else None


class Slow(Agent):
    """Answers twenty epochs late."""

    manifest = manifest("slow")

    def setup(self, ctx: uxk.Context) -> None:
        super().setup(ctx)
        self.late: list[Any] = []

    def advice(self, ctx: uxk.Context) -> Any:
        names = (GOOD, "dac/cb-age", "sepgc/greedy", "mida/greedy")
        self.late.append(encode_hint(GcHint(names[self.epoch // 8 % 4])))
        return self.late.pop(0) if len(self.late) > 20 else None


class Chance(Agent):
    """Any policy, another one every few epochs."""

    manifest = manifest("chance")

    def advice(self, ctx: uxk.Context) -> Any:
        placements = ("nosep", "sepgc", "dac", "sepbit", "fadac", "mida", "sfs", "multilog", "eti", "warcip")
        selections = ("greedy", "cb-age", "cb-sqrt", "mdc", "d-choices", "timestamp")
        rng = ctx.random("chance")
        return encode_hint(GcHint(f"{placements[rng.integers(10)]}/{selections[rng.integers(6)]}"))


class Adversary(Agent):
    """The worst policy it knows, and the fullest segments as victims."""

    manifest = manifest("adversary")

    def advice(self, ctx: uxk.Context) -> Any:
        full = np.sort(self.segments, order="live")[::-1][:64]
        victims = tuple(int(number) for number in full["segment"])
        self.advise(ctx, "lfs0.gc", uxk.Advice(encode_hint(GcHint(victims=victims)), standing=False))
        return encode_hint(GcHint(BAD))


class Turncoat(Agent):
    """Good until it is trusted with everything, then the worst there is; good again when it is found out."""

    manifest = manifest("turncoat")

    def advice(self, ctx: uxk.Context) -> Any:
        return encode_hint(GcHint(BAD if self.mode == uxk.Mode.RECOMMENDATION else GOOD))


class Replay(Agent):
    """Sends what was true long ago: old policies and old victims."""

    manifest = manifest("replay")

    def advice(self, ctx: uxk.Context) -> Any:
        if self.epoch < 30:
            self.old = [int(number) for number in self.segments["segment"][:64]]
        else:
            self.advise(ctx, "lfs0.gc", uxk.Advice(encode_hint(GcHint(victims=tuple(self.old))), standing=False))
        return encode_hint(GcHint("sepgc/timestamp"))


class Garbage(Agent):
    """Bytes that are no hint, hints that name nothing, arguments beyond every bound."""

    manifest = manifest("garbage")
    forms: ClassVar[Sequence[bytes]] = (
        b"", b"\xff" * 300, encode_hint(GcHint("no/such")), encode_hint(GcHint("fkg6/cb-age")),
        encode_hint(GcHint("sepbit/cb-age", (1 << 61,) * 12)), encode_hint(GcHint("rate/learned", (-(1 << 61),) * 12)),
        encode_hint(GcHint("stream/greedy", (1 << 61, -5))), encode_hint(GcHint(victims=(1 << 40, -1))),
        encode_hint(GcHint("table/greedy", table="nothing")), encode_hint(["rate/learned", [0] * 13]),
    )  # fmt: skip

    def advice(self, ctx: uxk.Context) -> Any:
        return self.forms[self.epoch % len(self.forms)]


HOSTILE = (Killed, Hung, Slow, Chance, Adversary, Turncoat, Replay, Garbage)


@cache
def writes(name: str) -> PageRun:
    return load_pages(name, pages=PAGES, seed=5)


@cache
def default_wa(name: str) -> float:
    """The default's own write amplification on the whole volume."""
    volume = Miniature(PAGES, SEGMENT_BLOCKS, 150_000, 6, parse_policy("sepbit/cb-age"))
    volume.run(writes(name).pages.astype(np.int32))
    return volume.epoch().wa_ppm / 1e6


def check(lfs: Lfs) -> None:
    """Every page is mapped to a block that says so, and the counts balance."""
    reg, seg, owner = lfs.volume.reg, lfs.volume.seg, lfs.volume.owner
    block = lfs.volume.page[: lfs.pages, c.BLOCK]
    mapped = np.flatnonzero(block >= 0)
    assert len(mapped) == len(np.unique(lfs.ops[: lfs.done])), "a written page is lost"
    assert (owner[block[mapped]] == mapped).all()
    live = np.bincount(block[mapped] // int(reg[c.SIZE]), minlength=len(seg))
    assert (live == seg[:, c.LIVE]).all()
    assert int(seg[:, c.USED].sum()) == int(reg[c.TOTAL])


async def run(agent: type[Agent], workload: str) -> Lfs:
    async with boot(seed=3) as kernel:
        await kernel.insmod(agent)
        params = LfsParams(segment_blocks=SEGMENT_BLOCKS)
        lfs = Lfs(kernel, params, writes(workload).pages, fill=PAGES, pages=PAGES)
        await kernel.run()
        check(lfs)
    return lfs


@pytest.mark.parametrize("workload", ["zipf1.0", "uniform"])
@pytest.mark.parametrize("agent", HOSTILE, ids=lambda agent: agent.__name__)
async def test_bad_advice_costs_little_and_no_data(agent: type[Agent], workload: str) -> None:
    lfs = await run(agent, workload)
    wa = lfs.results()["wa_ppm"] / 1e6
    assert wa <= BOUND * default_wa(workload), (agent.__name__, wa / default_wa(workload), lfs.proxy.timeline)


async def test_good_advice_is_promoted_and_pays() -> None:
    lfs = await run(Agent, "zipf1.0")
    assert lfs.epochs[-1].mode is uxk.Mode.RECOMMENDATION
    assert lfs.results()["wa_ppm"] / 1e6 < 0.95 * default_wa("zipf1.0")


async def test_the_dead_leave_the_default_in_force() -> None:
    lfs = await run(Hung, "zipf1.0")
    assert lfs.epochs[-1].share_ppm == 0
