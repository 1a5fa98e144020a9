"""The emulated flash: how long commands take, what wears, what is lost with the power.

``build(params, store, random)`` makes the medium that ``params.medium`` names; :func:`open_medium` opens the store as
well.  Contents are the store's, at their logical address; the flash translation layer maps for time, wear and
amplification alone.
"""

from __future__ import annotations

import numpy as np

from uxk_nvme.medium.base import POWER_STATES, Medium, MediumSmart, PowerState
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.medium.plain import NoneMedium, SimpleMedium
from uxk_nvme.store import Store, open_store

__all__ = [
    "POWER_STATES", "Medium", "MediumParams", "MediumSmart", "NoneMedium", "PowerState", "SimpleMedium", "build",
    "open_medium",
]  # fmt: skip


def build(params: MediumParams, store: Store, random: np.random.Generator) -> Medium:
    """The medium over ``store``; ``random`` is a stream of its own.  ParamError names what does not fit."""
    if params.medium == "none":
        return NoneMedium(params, store, random)
    if params.medium == "ftl":
        # Many small files that the others do not need.
        from uxk_nvme.medium.ftl.device import FtlMedium
        from uxk_nvme.medium.ftl.fast import FastFtlMedium

        kind = FastFtlMedium if FastFtlMedium.suits(params, store) else FtlMedium
        return kind(params, store, random)
    return SimpleMedium(params, store, random)


def open_medium(
    params: MediumParams, random: np.random.Generator, memory: memoryview | None = None,
    marks: memoryview | None = None, *, fresh: bool = False,
) -> Medium:  # fmt: skip
    """Store and medium.  ``memory`` (``params.size`` bytes that outlive the instance) serves ``backing=ram``.

    So does ``marks`` (:func:`uxk_nvme.store.record_bytes` of them) for what cannot be read.  ``fresh`` says that the
    memory was never used: it is not searched for data then.
    """
    store = open_store(
        params.backing, params.size, params.lba_bytes, integrity=params.integrity, memory=memory,
        marks=marks, fresh=fresh,
    )  # fmt: skip
    try:
        return build(params, store, random)
    except BaseException:
        store.close()
        raise
