"""An agent for the laboratory: recommends the file with the most dirty pages."""

from __future__ import annotations

import numpy as np

import uxk
from uxk.subsystems.mm.hint import WritebackHint, encode_hint


class WritebackAdvisor(uxk.MLAgent):
    """Advises the flusher of ``mm0``."""

    manifest = uxk.Manifest(
        name="writeback_advisor", version="0.1.0", license="Apache-2.0", description="names the dirtiest files",
        kind="ml-agent",
    )  # fmt: skip
    model = "mm0"
    sites = ("mm0.writeback",)
    standing = False
    ttl_ns = 20_000_000

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        """Keeps what :meth:`recommend` needs."""
        order = np.argsort(-dataset.rows["dirty"].astype(np.int64), kind="stable")[:4]
        self._files = tuple(int(each) for each in dataset.rows["file"][order])

    def recommend(self, ctx: uxk.Context, site: str) -> bytes | None:
        """The dirtiest file first."""
        return encode_hint(WritebackHint(self._files))
