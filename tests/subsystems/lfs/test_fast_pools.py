"""The batch kernel against plain Python, block for block, where the reference engine does not reach: two pools,
adoption, policies that change under way, miniatures, and the learned family.

Policies are the reference engine's own objects.  Each pool shows them a volume that is theirs alone; what moves
between pools (the time that a block brings along, the clock, the clean segments) is done here, from what the
documents say, and not from the kernel's source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.fast import pools
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import KEEP_B, make_volume, registers, segments_needed, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.miniature import Miniature
from uxk.subsystems.lfs.policies.base import Placement, Selection
from uxk.subsystems.lfs.policies.presets import F2fs
from uxk.subsystems.lfs.policies.random import seeded
from uxk.subsystems.lfs.policy import LEARNED, PLACEMENTS, SELECTIONS, Policy
from uxk.subsystems.lfs.reference import OPEN
from uxk.subsystems.lfs.reference import Volume as Reference
from uxk.subsystems.lfs.sample import buckets, make_sample, region_shift

ALONE = [name for name in SELECTIONS if name != "program"]
"""Selections that need nobody's program."""

BOUNDS = [(each.low, each.high) for each in LEARNED]
"""Of the learned family's twelve parameters: all that a hint may say."""


def lg(x: int) -> int:
    """log2 in 1/256 of the leading bits: 12 at most, cut by 8 and then by fours."""
    if x == 0:
        return 0
    cut = 0 if x < 1 << 12 else 8 if x < 1 << 20 else 12 + 4 * max(0, -(-(x.bit_length() - 24) // 4))
    return ((x >> cut) ** 512).bit_length() // 2 + 256 * cut


POWERS = [round(65_536 * 2 ** (-octaves / 256)) for octaves in range(256)]


def fade(value: int, octaves: int) -> int:
    """value * 2^(-octaves/256)."""
    return 0 if octaves >> 8 > 40 else (value >> (octaves >> 8)) * POWERS[octaves & 255] >> 16


class Rate(Placement):
    """``rate``: counts and smoothed intervals of pages, blended in the log domain."""

    name = "rate"

    def __init__(self, args: Sequence[int]) -> None:
        self.args = [*args, *[0] * (12 - len(args))]

    def attach(self, volume) -> None:
        self.count = [0] * volume.pages
        self.interval = [0] * volume.pages
        self.size = self.fading = 0

    def _refresh(self, volume) -> None:
        half = self.args[0]
        self.size, self.fading = lg(max(volume.valid, 1)), 0
        if half > 0:
            octaves = min(max(self.size + (half - 12) * 128, 8 * 256), 40 * 256)
            up = -(-octaves // 256)
            self.fading = (1 << 48) // max(POWERS[up * 256 - octaves] << up, 1)

    def _estimate(self, page: int, waited: int) -> int:
        blend, wait, regular = self.args[6], self.args[8], self.args[9]
        count, interval = self.count[page], self.interval[page]
        if self.fading:
            count = fade(count, waited * self.fading >> 24)
        rate = lg(count + 1) - 2048
        if blend == 0:
            return rate
        passed = lg(waited + 1) + 16 * wait
        if interval == 0:
            expected = max(passed, self.size + 256)
        elif passed > interval - 1:
            expected = passed
        else:
            expected = interval - 1
            short = expected - lg(waited + 1)
            if waited and regular and 1 < short < 2560:
                left = 4096 - ((POWERS[short % 256] >> short // 256) * regular >> 8)
                expected += lg(left) - 3072
        return rate + (self.size - expected - rate) * blend // 16

    def _class(self, volume, top: int, step: int, rate: int) -> int:
        return min(max((top * 16 - rate) // max(step * 16, 1), 0), volume.logs - 1)

    def user(self, volume, page: int) -> int:
        if volume.now % 256 == 1 or self.size == 0:
            self._refresh(volume)
        if volume.last[page] >= 0:
            waited = volume.now - volume.last[page]
            if self.fading:
                self.count[page] = fade(self.count[page], waited * self.fading >> 24)
            before, new = self.interval[page], lg(waited) + 1
            self.interval[page] = before + (new - before) * self.args[7] // 16 if before else new
        self.count[page] += 256
        return self._class(volume, self.args[2], self.args[3], self._estimate(page, 0))

    def moved(self, volume, page: int, victim: int) -> int:
        self.count[page] = max(self.count[page] - 32 * self.args[1], 0)
        rate = self._estimate(page, volume.now - volume.last[page])
        return self._class(volume, self.args[4], self.args[5], rate)


class Stream(Placement):
    """``stream``: user writes by the log that was written next to them, moves down a chain of generations."""

    name = "stream"

    def __init__(self, args: Sequence[int]) -> None:
        self.args = [*args, *[0] * (12 - len(args))]

    def attach(self, volume) -> None:
        self.next, self.used = [0] * 16, [0] * 16

    def _logs(self, volume) -> int:
        return max(min(self.args[0], volume.logs - 1), 1)

    def user(self, volume, page: int) -> int:
        logs = range(self._logs(volume))
        near = [log for log in logs if abs(page - self.next[log]) <= max(self.args[1], 0)]
        log = near[0] if near else min(logs, key=lambda each: self.used[each])
        self.next[log], self.used[log] = page + 1, volume.now
        return log

    def moved(self, volume, page: int, victim: int) -> int:
        log, last = volume.log_of[victim], volume.logs - 1
        return min(log + 1 if self._logs(volume) <= log <= last else self._logs(volume), last)


class Learned(Selection):
    """``learned``: garbage^g * age^a / live, in logs."""

    name = "learned"

    def __init__(self, args: Sequence[int]) -> None:
        self.args = [*args, *[0] * (12 - len(args))]

    def score(self, volume, segment: int) -> int:
        live = volume.live[segment]
        age = volume.now - volume.sealed_at[segment]
        return lg(volume.size - live) * self.args[10] - lg(live) * 16 + lg(age + 1) * self.args[11] + (1 << 24)


class MultiLog(policies.MultiLog):
    """As the other one, but a page's log is what it knows of the page: blocks lie in other placements' logs, too."""

    def attach(self, volume) -> None:
        super().attach(volume)
        self.valid[0] = volume.valid
        self.collected, self.collected_valid = [0] * 16, [0] * 16

    def invalidated(self, volume, page: int, segment: int) -> None:
        pass

    def user(self, volume, page: int) -> int:
        if volume.last[page] >= 0:
            self.valid[self.level[page]] -= 1
        return super().user(volume, page)

    def moved(self, volume, page: int, victim: int) -> int:
        if volume.sealed_at[victim] < 0:  # the other pool's
            self.valid[self.level[page]] -= 1
        return super().moved(volume, page, victim)

    def retired(self, volume, victim: int) -> None:
        for page in volume.pages_in(victim):
            self.valid[self.level[page]] -= 1
        log = volume.log_of[victim]
        self.collected[log] += volume.used[victim]
        self.collected_valid[log] += volume.live[victim]


def part(policy: Policy, table: Sequence[int] | None = None) -> tuple[Placement, Selection]:
    """A policy's parts; the basis of a table is SepBIT."""
    own = {"rate": Rate, "stream": Stream}
    name = policy.placement
    if name in own:
        placement = own[name](policy.args)
    elif name == "multilog":
        placement = MultiLog()
    elif name == "f2fs":
        placement = F2fs()
    else:
        placement = policies.lookup(f"{name}/greedy", table=table).placement
    if policy.selection == "learned":
        return placement, Learned(policy.args)
    return placement, policies.lookup(f"nosep/{policy.selection}").selection


class Pool:
    """What one pool's policy sees: :class:`uxk.subsystems.lfs.reference.Volume`, as far as policies look at it."""

    def __init__(self, whole: Pools, index: int) -> None:
        self.whole, self.index = whole, index
        self.pages, self.size, self.logs, self.segments = whole.pages, whole.size, whole.logs, whole.segments
        self.most, self.last, self.used = whole.most, whole.last, whole.used
        self.log_of, self.born = whole.log_of, whole.born
        self.live = [OPEN] * self.segments
        self.sealed_at = [-1] * self.segments
        self.heads = [-1] * 16
        self.user = self.moved = self.garbage = self.total = self.cleaned = 0
        self.basis = -1
        self.random = seeded(1)
        self.follow(Policy("nosep", "greedy"))

    @property
    def now(self) -> int:
        return self.whole.now

    @property
    def valid(self) -> int:
        return self.whole.valid

    def pages_in(self, segment: int) -> list[int]:
        start = segment * self.size
        return [page for page in self.whole.owner[start : start + self.size] if page >= 0]

    def follow(self, policy: Policy, table: Sequence[int] | None = None) -> None:
        """Another policy from now on: what its basis had learned stays, rates stay unless their column is needed."""
        before, name = self.basis, policy.placement
        self.basis = c.SEPBIT if name == "table" else PLACEMENTS[name]
        placement, selection = part(policy, table)
        changed = self.basis != before or (selection.name != self.selection.name)
        inner = placement.default if name == "table" else placement
        if self.basis == before:
            if isinstance(inner, Rate | Stream):
                self.inner.args = inner.args
            inner = self.inner
        else:
            inner.attach(self)
            if {before, self.basis} - {*KEEP_B, -1}:
                self.rates = None
            if before == c.RATE and self.basis in KEEP_B:
                self.rates = self.inner
            if isinstance(inner, Rate) and self.rates is not None:
                inner.count, inner.interval = self.rates.count, self.rates.interval
        if name == "table":
            placement.default = inner
        else:
            placement = inner
        self.inner, self.placement = inner, placement
        if isinstance(selection, policies.DChoices):
            selection.random = self.random
        if changed:
            self.selection = selection
            self.rebuild()
        elif isinstance(selection, Learned):
            self.selection.args = selection.args

    rates: Rate | None = None
    """What a rate placement had learned before others that leave it alone."""
    selection: Selection = Selection()

    def rebuild(self) -> None:
        """Sums of the pool's segments anew."""
        self.selection.sums = [0] * self.segments
        for segment in range(self.segments):
            if self.whole.pool_of[segment] == self.index and self.used[segment]:
                at = self.whole.sealed_at[segment]
                self.selection.sums[segment] = self.used[segment] * (at if at >= 0 else self.now)
                if isinstance(self.inner, policies.SFS):
                    pages = self.pages_in(segment)
                    self.inner.segment_writes[segment] = sum(self.inner.writes[page] for page in pages)
                    self.inner.segment_lasts[segment] = sum(self.last[page] for page in pages)

    @property
    def inherits(self) -> bool:
        return isinstance(self.selection, policies.Mdc | policies.Atgc)

    def log_for(self, page: int, victim: int = -1) -> int:
        """Log of a user write, or of a move."""
        constant = self.placement.user_log if victim < 0 else self.placement.moved_log
        if constant is not None:
            return constant
        return self.placement.user(self, page) if victim < 0 else self.placement.moved(self, page, victim)

    def select(self) -> int:
        found = self.selection.victim(self)
        if isinstance(self.selection, policies.DChoices):
            self.random = self.selection.random
        return found


class Pools:
    """A volume of one or two pools."""

    def __init__(self, pages: int, segment_blocks: int, gp_ppm: int, logs: int, pools: int = 2) -> None:
        self.pages, self.size, self.gp_ppm, self.logs = pages, segment_blocks, gp_ppm, logs
        count = self.segments = segments_needed(pages, segment_blocks, gp_ppm, logs * pools)
        self.most = segment_blocks - max(segment_blocks * gp_ppm // 1_000_000, 1)
        self.bucket = buckets(pages, region_shift(pages)).tolist()
        self.block_of, self.last = [-1] * pages, [-1] * pages
        self.owner = [-1] * (count * segment_blocks)
        self.live, self.used, self.born = [0] * count, [0] * count, [0] * count
        self.log_of, self.sealed_at, self.pool_of = [-1] * count, [-1] * count, [0] * count
        self.clean = list(range(count - 1, -1, -1))
        self.low = count
        self.now = self.valid = self.moved = self.share = 0
        self.hints: list[tuple[int, int]] = []
        self.parts = [Pool(self, index) for index in range(pools)]

    # --- what one does between runs ---

    def adopt(self, number: int) -> None:
        """All segments are that pool's; the other's open ones are sealed as they are."""
        new, old = self.parts[number], self.parts[1 - number]
        for segment in old.heads:
            if segment >= 0:
                self.sealed_at[segment] = self.now
                old.garbage += self.used[segment] - self.live[segment]
        old.heads = [-1] * 16
        for segment in range(self.segments):
            if self.used[segment] and self.pool_of[segment] != number:
                self.pool_of[segment] = number
                if new.basis != old.basis:
                    self.log_of[segment] = c.FOREIGN
            self._told(segment)
        new.garbage, new.total = new.garbage + old.garbage, new.total + old.total
        old.garbage = old.total = 0
        new.rebuild()

    def run(self, pages: Iterable[int]) -> None:
        """Writes them under the frozen rule."""
        for page in pages:
            self._write(page)
            while sum(p.garbage for p in self.parts) * 1_000_000 > self.gp_ppm * sum(p.total for p in self.parts):
                victim = self._choose()
                if victim < 0:
                    break
                self._collect(victim)

    # --- steps ---

    def _told(self, segment: int) -> None:
        """Pools see their own sealed segments only."""
        for pool in self.parts:
            mine = self.pool_of[segment] == pool.index and self.sealed_at[segment] >= 0
            pool.live[segment] = self.live[segment] + (0 if mine else OPEN)
            pool.sealed_at[segment] = self.sealed_at[segment] if mine else -1

    def _owner(self, page: int, victim: int = -1) -> tuple[Pool, int]:
        """Whose page it is, and the log there; both pools learn from it while there is a share."""
        found = self.parts[0], self.parts[0].log_for(page, victim)
        if self.share:
            log = self.parts[1].log_for(page, victim)
            if self.bucket[page] < self.share:
                return self.parts[1], log
        return found

    def _write(self, page: int) -> None:
        self.now += 1
        old, time = self.block_of[page], 0
        if old >= 0:
            segment = old // self.size
            pool = self.parts[self.pool_of[segment]]
            self.owner[old] = -1
            self.live[segment] -= 1
            pool.garbage += self.sealed_at[segment] >= 0
            self._told(segment)
            pool.placement.invalidated(pool, page, segment)
            if isinstance(pool.selection, policies.Mdc):
                pool.selection.invalidated(pool, page, segment)
                time = pool.selection.rewritten
        else:
            self.valid += 1
        own, log = self._owner(page)
        self.last[page] = self.now
        self._append(own, page, log, self.now if isinstance(own.selection, policies.Atgc) else time, -1)
        own.total += 1
        own.user += 1

    def _append(self, pool: Pool, page: int, log: int, time: int, victim: int) -> None:
        segment = pool.heads[log]
        if segment < 0:
            segment = pool.heads[log] = self.clean.pop()
            self.low = min(self.low, len(self.clean))
            self.log_of[segment], self.born[segment], self.pool_of[segment] = log, self.now, pool.index
            pool.selection.sums[segment] = 0
            if isinstance(pool.inner, policies.SFS):
                pool.inner.segment_writes[segment] = pool.inner.segment_lasts[segment] = 0
        block = segment * self.size + self.used[segment]
        self.owner[block] = page
        self.block_of[page] = block
        self.used[segment] += 1
        self.live[segment] += 1
        if full := self.used[segment] == self.size:
            self.sealed_at[segment] = self.now
            pool.heads[log] = -1
            pool.garbage += self.size - self.live[segment]
        self._told(segment)
        if pool.inherits:
            pool.selection.sums[segment] += time
        pool.placement.appended(pool, page, segment, victim)
        if full:
            pool.placement.sealed(pool, segment)

    def _choose(self) -> int:
        """A victim of the pool with the greater share of garbage, or of the other; hints go before the second's."""
        first = self.parts[0]
        if len(self.parts) == 1:
            return first.select()
        second = self.parts[1]
        if second.garbage * first.total <= first.garbage * second.total and first.total:
            victim = first.select()
            if victim >= 0:
                return victim
        victim = second.select()
        if victim < 0:
            return first.select()
        while self.hints and self.share:
            segment, most = self.hints.pop(0)
            if 0 <= segment < self.segments and second.sealed_at[segment] >= 0:
                live = second.live[segment]
                if live <= min(most, self.most, second.live[victim] + self.size // 8):
                    return segment
        return victim

    def _collect(self, victim: int) -> None:
        pool = self.parts[self.pool_of[victim]]
        used, live = self.used[victim], self.live[victim]
        time = pool.selection.sums[victim] // used if pool.inherits else self.sealed_at[victim]
        pool.placement.retired(pool, victim)
        for block in range(victim * self.size, victim * self.size + used):
            page = self.owner[block]
            if page >= 0:
                own, log = self._owner(page, victim)
                self._append(own, page, log, time, victim)
                own.moved += 1
                own.total += 1
        self.moved += live
        pool.garbage -= used - live
        pool.total -= used
        pool.cleaned += 1
        self.owner[victim * self.size : (victim + 1) * self.size] = [-1] * self.size
        self.live[victim] = self.used[victim] = 0
        self.log_of[victim] = self.sealed_at[victim] = -1
        self._told(victim)
        self.clean.append(victim)


# --- comparing ----------------------------------------------------------------------------------------------

PAGES = 300
POLICIES = st.builds(
    Policy,
    st.sampled_from([name for name in PLACEMENTS if name not in ("fk", "fkg6")]),
    st.sampled_from(ALONE),
    st.tuples(*(st.integers(low, high) for low, high in BOUNDS)),
)
"""A table's first argument is a code of a placement, so that has none."""
FAMILY = [Policy(placement, selection) for placement in ("rate", "stream") for selection in ALONE]
FAMILY += [Policy(p, "learned") for p in PLACEMENTS if p not in ("fk", "fkg6", "rate", "stream")]
SETTINGS = st.tuples(*(st.integers(low, high) for low, high in BOUNDS))


def plain(policy: Policy) -> Policy:
    return policy._replace(args=()) if policy.placement == "table" else policy


def skewed(seed: int, count: int, pages: int = PAGES) -> np.ndarray:
    """Skewed writes whose hot pages change half way, a few sequential runs among them."""
    rng = np.random.default_rng(seed)
    found = (rng.random(count) ** 3 * pages).astype(np.int64)
    found[count // 2 :] += pages // 3
    for start in rng.integers(0, max(count - 20, 1), 4):
        part = found[start : start + 20]
        part[:] = part[:1] + np.arange(len(part))
    return (found % pages).astype(np.int32)


def same(volume, model: Pools, what: object = "") -> None:
    """Mapping, books and the stack of clean segments."""
    assert volume.page[: model.pages, c.BLOCK].tolist() == model.block_of, what
    reg, seg = volume.reg, volume.seg
    assert (reg[c.NOW], reg[c.MOVED], reg[c.LOW]) == (model.now, model.moved, model.low)
    assert seg[: reg[c.CLEAN], c.STACK].tolist() == model.clean
    assert seg[:, c.SEALED].tolist() == model.sealed_at
    for number, pool in enumerate(model.parts):
        own = registers(volume, number)
        found = [int(own[register]) for register in (c.GARBAGE, c.TOTAL)]
        assert found == [pool.garbage, pool.total]
        if len(model.parts) == 2:
            counted = pools.count(volume, number)
            assert counted == (pool.user, pool.moved, pool.garbage, pool.total, pool.cleaned)


@pytest.mark.parametrize("policy", FAMILY, ids=lambda policy: policy.name)
@settings(max_examples=2, deadline=None)
@given(
    SETTINGS, st.integers(2, 8), st.sampled_from([(16, 150_000), (10, 70_000), (20, 400_000)]), st.integers(0, 99)
)  # fmt: skip
def test_learned_family(policy: Policy, args: tuple[int, ...], logs: int, shape: tuple[int, int], seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, logs + 2, PAGES)
    if policy.placement not in ("rate", "stream"):
        logs = max(logs, 4)
    policy = Policy(policy.placement, policy.selection, args)
    ops = np.concatenate([np.arange(PAGES), skewed(seed, 2_000)]).astype(np.int32)
    placement, selection = part(policy, table.tolist())
    if policy.placement == "multilog":
        placement = policies.MultiLog()
    slow = Reference(Geometry(PAGES, *shape, logs), policies.Policy(placement, selection))
    slow.run(ops)
    volume = make_volume(PAGES, *shape, logs, table.astype(np.int64))
    codes = policy.codes if policy.placement != "table" else (*policy.codes[:2], (0, *args[1:]))
    set_policy(volume, *codes)
    assert run(*volume, ops, 0, len(ops)) == len(ops)
    assert volume.page[:, c.BLOCK].tolist() == list(slow.block_of)
    assert (volume.reg[c.MOVED], volume.reg[c.LOW]) == (slow.moved, slow.low)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("share"), st.sampled_from([0, 64, 512, 1024])),
        st.tuples(st.just("adopt"), st.integers(0, 1)),
        st.tuples(st.just("policy 0"), POLICIES),
        st.tuples(st.just("policy 1"), POLICIES),
        st.tuples(st.just("victims"), st.lists(st.integers(-2, 70), max_size=12)),
        st.tuples(st.just("write"), st.integers(0, 999)),
    ),
    min_size=2, max_size=10,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(POLICIES, POLICIES, st.sampled_from([0, 300, 1024]), st.integers(4, 8), st.sampled_from([8, 13]), STEPS)
def test_two_pools(default: Policy, hinted: Policy, share: int, logs: int, size: int, steps: list) -> None:
    table = np.random.default_rng(size).integers(0, logs + 2, PAGES)
    volume = make_volume(PAGES, size, 150_000, logs, table.astype(np.int64), pools=2)
    model = Pools(PAGES, size, 150_000, logs)

    def do(kind: str, what) -> None:
        if kind == "share":
            pools.share(volume, what)
            model.share = what
        elif kind == "adopt":
            pools.adopt(volume, what)
            model.adopt(what)
        elif kind.startswith("policy"):
            number = int(kind[-1])
            set_policy(volume, *plain(what).codes, pool=number)
            model.parts[number].follow(plain(what), table.tolist())
        elif kind == "victims":
            pools.hint_victims(volume, what, 8)
            model.hints = [(segment, 8) for segment in what]
        else:
            ops = np.arange(PAGES, dtype=np.int32) if what < 0 else skewed(what, 500)
            assert run(*volume, ops, 0, len(ops)) == len(ops)
            model.run(ops.tolist())
        same(volume, model, (kind, what))

    for step in [("policy 0", default), ("policy 1", hinted), ("share", share), ("write", -1), ("write", 5), *steps]:
        do(*step)
    do("write", 7)


@settings(max_examples=6, deadline=None)
@given(POLICIES, POLICIES, st.integers(4, 8), st.integers(0, 99))
def test_miniatures(first: Policy, second: Policy, logs: int, seed: int) -> None:
    sample = make_sample(16_384, 64, 4)
    assert sample.ratio == 2
    ops = sample.of(np.concatenate([np.arange(16_384, dtype=np.int32), skewed(seed, 8_000, 16_384)]))
    pages, table = len(sample.pages), np.arange(len(sample.pages)) % (logs + 1)
    mini = Miniature(pages, sample.segment_blocks, 150_000, logs, Policy("nosep", "greedy"))
    mini.table(table.astype(np.int64))
    model = Pools(pages, sample.segment_blocks, 150_000, logs, pools=1)
    mini.follow(plain(first))
    model.parts[0].follow(plain(first), table.tolist())
    half = len(ops) // 2
    mini.run(ops[:half])
    model.run(ops[:half].tolist())
    same(mini.volume, model)
    assert mini.epoch() == (half, model.moved)
    before = model.moved
    copy = mini.clone(plain(second))
    model.parts[0].follow(plain(second), table.tolist())
    copy.run(ops[half:])
    model.run(ops[half:].tolist())
    same(copy.volume, model)
    assert copy.epoch() == (len(ops) - half, model.moved - before)
    assert mini.epoch() == (0, 0), "a copy has arrays of its own"
