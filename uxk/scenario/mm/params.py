"""``[subsystems.mm]`` of a scenario: memory, the volume below it, who writes, and what the agent needs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from uxk.subsystems.mm.params import MmParams
from uxk.uapi.manifest import param

MS: Final = 1_000_000
_NS: Final = 1 << 50


class MmScenario(MmParams):
    """The laboratory's bench.  Device speeds are those of a slow one, so that a run is short."""

    policy: Annotated[
        Literal["default", "hints", "sync-upcall"],
        param(help="default: nobody is asked; hints: those that have come are looked at; sync-upcall: a demonstration "
              "of what uxk forbids, the kernel asks and waits"),
    ] = "hints"  # fmt: skip
    ask: Annotated[Literal["writeback", "gc"], param(help="whose decision the agent advises, or holds up")] = "gc"
    agent: Annotated[str, param(help="the instance whose memory is emulated; empty: none")] = ""
    agent_anon_pages: Annotated[int, param(ge=0, le=1 << 24, help="anonymous pages that it needs to think")] = 0
    agent_file_pages: Annotated[int, param(ge=1, le=1 << 24, help="pages of the file that it has mapped")] = 64
    agent_stores: Annotated[int, param(ge=0, le=1 << 16, help="pages of it that it changes each time")] = 0
    trigger: Annotated[bool, param(help="whether watermarks switch to the in-kernel default")] = True
    volume_pages: Annotated[int, param(ge=1_024, le=1 << 24, help="pages of the volume")] = 8_192
    segment_blocks: Annotated[int, param(ge=8, le=4_096, help="blocks of a segment")] = 64
    spare_segments: Annotated[int, param(ge=12, le=1 << 16, help="segments beyond the volume's pages")] = 20
    cleaning: Annotated[str, param(help="the kernel's own policy, placement/selection")] = "sepgc/greedy"
    aged_volumes: Annotated[int, param(ge=0, le=16, help="times the volume was overwritten before the run")] = 2
    program_bytes_per_s: Annotated[int, param(ge=1 << 20, le=1 << 40, unit="bytes", help="device, writing")] = 100 << 20
    writers: Annotated[int, param(ge=1, le=256, help="tasks that write as fast as they may")] = 4
    burst_ns: Annotated[int, param(ge=1, le=_NS, unit="ns", help="they write for so long")] = 60 * MS
    rest_ns: Annotated[int, param(ge=0, le=_NS, unit="ns", help="and rest for so long; 0: never")] = 90 * MS
    hot_ppm: Annotated[int, param(ge=0, le=1_000_000, help="share of writes to a fifth of the pages")] = 800_000
    hog_pages: Annotated[int, param(ge=0, le=1 << 24, help="anonymous pages that another process allocates")] = 0
    hog_at_ns: Annotated[int, param(ge=0, le=_NS, unit="ns", help="when it does")] = 150 * MS
    epoch_ns: Annotated[int, param(ge=100_000, le=_NS, unit="ns", help="datasets go out so often")] = 2 * MS
    window_ns: Annotated[int, param(ge=100_000, le=_NS, unit="ns", help="progress is counted in windows")] = 50 * MS
