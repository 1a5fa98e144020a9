"""What a kernel tells of itself for metrics: numbers and names, the same for the endpoint and the control socket."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

LATENCY_BOUNDS_NS: Final = (*(step * 10**power for power in range(3, 10) for step in (1, 3)), 10**10)
"""Upper bounds of the latency buckets: 1 us, 3 us, 10 us, ... 10 s."""


class ModuleSample(Struct, frozen=True):
    """One instance."""

    name: str
    module: str
    version: str
    driver_class: str
    placement: str
    state: str
    counters: dict[str, int]
    gauges: dict[str, int]
    rejects: dict[str, int]
    rings: dict[str, dict[str, int]]
    latency_buckets: tuple[int, ...]
    """Answers within each of :data:`LATENCY_BOUNDS_NS`, cumulated; to 3 %, as the kernel's histogram is."""
    latency_count: int
    latency_sum_ns: int


class PartSample(Struct, frozen=True):
    """A site or a dataset of a model."""

    name: str
    values: dict[str, int]
    rejects: dict[str, int] = {}


class ModelSample(Struct, frozen=True):
    """One model proxy."""

    name: str
    subsystem: str
    mode: str
    state: str
    values: dict[str, int]
    mode_epochs: dict[str, int]
    sites: tuple[PartSample, ...]
    datasets: tuple[PartSample, ...]


class Snapshot(Struct, frozen=True):
    """The kernel at one instant."""

    clock: str
    seed: str
    version: str
    values: dict[str, int]
    kmsg_by_level: dict[str, int]
    modules: tuple[ModuleSample, ...]
    models: tuple[ModelSample, ...]
    left_out: dict[str, int]
    """What there was beyond the bounds."""
