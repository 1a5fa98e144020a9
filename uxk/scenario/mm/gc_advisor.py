"""An agent for the laboratory: recommends the emptiest segments as victims."""

from __future__ import annotations

import numpy as np

import uxk
from uxk.subsystems.lfs.hint import GcHint, encode_hint

VICTIMS = 4


class GcAdvisor(uxk.MLAgent):
    """Advises the cleaner of ``lfs0``."""

    manifest = uxk.Manifest(
        name="gc_advisor", version="0.1.0", license="Apache-2.0", description="names the emptiest segments",
        kind="ml-agent",
    )  # fmt: skip
    model = "lfs0"
    sites = ("lfs0.gc",)
    standing = False
    ttl_ns = 20_000_000

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        """Keeps what :meth:`recommend` needs."""
        order = np.argsort(dataset.rows["live"], kind="stable")[:VICTIMS]
        self._victims = tuple(int(each) for each in dataset.rows["segment"][order])

    def recommend(self, ctx: uxk.Context, site: str) -> bytes | None:
        """The emptiest segments, first things first."""
        return encode_hint(GcHint(victims=self._victims)) if self._victims else None
