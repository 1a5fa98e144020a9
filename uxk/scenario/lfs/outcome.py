"""What one run of a study leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct, field

from uxk.limits import PPM
from uxk.scenario.lfs.entrants import Kind
from uxk.scenario.lfs.latency import Latency


class Epoch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Blocks written in a span of user writes; from ``mode`` on of runs with an agent."""

    epoch: int
    user: int
    moved: int
    clean: int | None = None
    """Clean segments at the end."""
    heat: list[int] | None = None
    """Sealed segments at the end by tenths of valid blocks: 0 to 9 tenths, and full ones."""
    victim: tuple[int, int] | None = None
    """Age in user writes and valid blocks of the segment that would have been cleaned next at the end."""
    mode: str = ""
    share_ppm: int = 0
    """Extents that followed hints."""
    policy: str = ""
    """What hints had put in force."""
    args: list[int] = []
    default_wa_ppm: int = 0
    hinted_wa_ppm: int = 0


class HintRecord(Struct, frozen=True, kw_only=True):
    """A hint as the kernel got it."""

    epoch: int
    """Epochs that were over."""
    now_ns: int
    agent: str
    cid: int
    site: str
    generation: int
    payload: str
    """In hexadecimal digits."""
    standing: bool
    ttl_ns: int
    predicted: int
    refused: str
    """Why, if it was refused at once."""
    dataset: int = 0
    """Number of the dataset that it was derived from, and that one's generation."""
    dataset_generation: int = 0


class Outcome(Struct, kw_only=True):
    """One policy with one seed."""

    policy: str
    kind: Kind
    seed: int
    is_default: bool
    user_blocks: int
    moved_blocks: int
    half_user_blocks: int
    """Those after the fill and half of the other writes."""
    half_moved_blocks: int
    event_hash: str
    """Of a run on a kernel its event hash; otherwise a digest of the blocks moved after each write."""
    engine: str
    clean_min: int | None = None
    latency: Latency | None = None
    epochs: list[Epoch] = []
    heat: list[int] | None = None
    """At the end, see :class:`Epoch`."""
    received: int = 0
    applied: int = 0
    expired: int = 0
    superseded: int = 0
    refused: dict[str, int] = {}
    account: dict[str, int] = {}
    """Of an agent: crossings, bytes, cpu_ns (host time), charged_ns, held_bytes (memory at the end) and so on."""
    timeline: list[dict[str, Any]] = []
    mode_epochs: dict[str, int] = {}
    following_ppm: int = 0
    """Share of user blocks that followed hints."""
    missing: dict[str, str] = {}
    """Figures that were not computed, and why."""
    notes: list[str] = field(default_factory=list)
    exit_code: int = 0
    host_ns: int = 0
    """0 for a copy: a run that another seed's stands for."""
    hint_log: list[HintRecord] = []
    kmsg: list[str] = []

    @property
    def wa_ppm(self) -> int:
        """Write amplification of the whole run."""
        return PPM + self.moved_blocks * PPM // max(self.user_blocks, 1)

    @property
    def half_wa_ppm(self) -> int:
        """Write amplification of the second half."""
        return PPM + self.half_moved_blocks * PPM // max(self.half_user_blocks, 1)


class Live(NamedTuple):
    """How far a run is."""

    policy: str
    seed: int
    number: int
    """Of the run, from 1."""
    runs: int
    done: int
    """User writes."""
    total: int
    wa_ppm: int
    mode: str
    heat: list[int]


OnLive: TypeAlias = Callable[[int, int, int, str, list[int]], object]
"""done, total, wa_ppm, mode, heat."""
