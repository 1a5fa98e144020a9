"""The garbage collector's agent: it tries candidates on miniatures of the volume, and recommends the best one.

The kernel publishes a hashed sample of the volume's writes; the agent lets every candidate work on that sample,
learns from their costs which one to trust (:mod:`uxk_gc.chooser`), varies the best ones
(:mod:`uxk_gc.search`), and sends the name and the parameters as a standing hint.  Human-made policies are always among
the candidates.
"""

from __future__ import annotations

import pickle
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from river import stats

import uxk
from uxk.subsystems.lfs.hint import GcHint, encode_hint
from uxk.subsystems.lfs.miniature import Policy
from uxk_gc.candidates import portfolio
from uxk_gc.chooser import CHOOSERS, Chooser
from uxk_gc.miniatures import Miniatures
from uxk_gc.search import Search


class GcParams(uxk.Params):
    """What the agent learns with; the defaults are the agent, the others are there to compare."""

    chooser: Annotated[
        Literal["river", "minimum", "random"], uxk.param(help="who chooses: river, the last minimum, or chance")
    ] = "river"
    learned: Annotated[bool, uxk.param(help="whether there are candidates beside the human-made")] = True
    search: Annotated[bool, uxk.param(help="whether the best candidates are varied")] = True


class Learned(NamedTuple):
    """What one instance leaves to the next: everything but the miniatures, which are of one volume."""

    params: GcParams
    logs: int
    candidates: list[Policy]
    chooser: Chooser
    search: Search | None
    default_cost: stats.EWMean
    error_ppm: stats.EWMean


class Gc(uxk.MLAgent[GcParams]):
    """Advises the collector of ``lfs0``."""

    manifest = uxk.Manifest(
        name="gc", version="0.1.0", author="The uxk authors", license="Apache-2.0",
        description="garbage collection that learns", kind="ml-agent", alias=("uxk_gc",), params=GcParams,
    )  # fmt: skip
    model = "lfs0"
    sites = ("lfs0.gc",)
    checkpoint_every = 0
    checkpoint_max_bytes = 128 << 10

    def setup(self, ctx: uxk.Context) -> None:
        """Nothing is known of the volume before its first dataset."""
        self.refused = 0
        self.error_ppm = stats.EWMean(0.1)
        """By how much predictions of write amplification were off lately, in parts per million."""
        self._default_cost = stats.EWMean(0.1)
        self._ops: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._miniatures: Miniatures | None = None
        self._chooser: Chooser
        self._search: Search | None = None
        self._gp_ppm = self._logs = 0
        self._due = False
        self._told = ""
        self._learned: Learned | None = None

    def checkpoint(self) -> bytes:
        """What it has learned; empty before there was a lesson."""
        miniatures = self._miniatures
        if miniatures is None:
            return b"" if self._learned is None else pickle.dumps(self._learned)
        return pickle.dumps(Learned(
            self.params, self._logs, miniatures.candidates, self._chooser, self._search, self._default_cost,
            self.error_ppm,
        ))  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Goes on from there with its first dataset, if parameters and volume are alike."""
        self._learned = pickle.loads(data) if data else None

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        """``writes`` come before ``state``, epoch by epoch."""
        if dataset.name == "writes":
            self._ops = dataset.rows["page"].astype(np.int32)
        elif dataset.name == "state":
            self._learn(ctx, {name: int(dataset.rows[name][0]) for name in dataset.rows.dtype.names or ()})

    def _learn(self, ctx: uxk.Context, state: dict[str, int]) -> None:
        """One epoch: every candidate writes what was sampled, and their costs are the lesson."""
        if self._miniatures is None:
            self._begin_with(ctx, state)
        assert self._miniatures is not None
        if state["gp_ppm"] != self._gp_ppm:
            self._gp_ppm = state["gp_ppm"]
            self._miniatures.threshold(self._gp_ppm)
        costs = self._miniatures.write(self._ops)
        self._due = False
        if costs is None or costs.max() == 1:  # a volume that fills cleans nothing: no lesson
            return
        self._default_cost.update(float(costs[0]))
        self._chooser.learn(costs, self.mode in (uxk.Mode.COLLABORATION, uxk.Mode.RECOMMENDATION))
        if self._search is not None:
            self._search.vary(self._miniatures, self._chooser)
        self._due = self._chooser.choice >= 0

    def _begin_with(self, ctx: uxk.Context, state: dict[str, int]) -> None:
        self._logs = state["logs"]
        learned = self._take_learned(ctx)
        candidates = learned.candidates if learned else portfolio(self._logs, self.params.learned, self.params.search)
        self._miniatures = Miniatures(
            state["sampled"], state["segment_blocks"], state["gp_max_ppm"], state["logs"], state["ratio"], candidates
        )  # fmt: skip
        ctx.log(f"{len(candidates)} candidates on {state['sampled']} of {state['pages']} pages")
        if learned is not None:
            self._chooser, self._search = learned.chooser, learned.search
            self._default_cost, self.error_ppm = learned.default_cost, learned.error_ppm
            if self._search is not None:
                self._search.reseed(ctx.random("search"))
            return
        placements = [candidate.placement for candidate in candidates]
        self._chooser = CHOOSERS[self.params.chooser](placements, ctx.random("chooser"))
        if self.params.search and self.params.learned:
            self._search = Search(ctx.random("search"))

    def _take_learned(self, ctx: uxk.Context) -> Learned | None:
        learned, self._learned = self._learned, None
        if learned is not None and (learned.params != self.params or learned.logs != self._logs):
            ctx.log(f"learned for {learned.logs} logs and {learned.params}: starting cold", level=4)
            return None
        return learned

    def recommend(self, ctx: uxk.Context, site: str) -> uxk.Advice | None:
        """The chosen candidate, once an epoch: a hint that is repeated stays fresh."""
        if not self._due or self._miniatures is None:
            return None
        self._due = False
        policy = self._miniatures.candidates[self._chooser.choice]
        if policy.name != self._told:
            self._told = policy.name
            ctx.set_attribute("policy", f"{policy.name} {' '.join(map(str, policy.args))}".strip())
        share = float(np.exp(self._chooser.means[self._chooser.choice]))
        expected_ppm = int(self._default_cost.get() * share * 1_000_000)
        return uxk.Advice(encode_hint(GcHint(policy.name, policy.args)), predicted=expected_ppm)

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        """A refused hint is said again with the next dataset; what came of the others is for the statistics."""
        if feedback.reject:
            self.refused += 1
            ctx.set_attribute("refused", self.refused)
        elif feedback.predicted:
            error_ppm = abs(feedback.outcome - feedback.predicted) * 1_000_000 // feedback.predicted
            self.error_ppm.update(error_ppm)
            ctx.set_attribute("error_ppm", int(self.error_ppm.get()))
