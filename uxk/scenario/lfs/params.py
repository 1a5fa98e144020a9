"""``[subsystems.lfs]`` of a scenario: a volume's settings and what is written to it."""

from __future__ import annotations

from typing import Annotated

from uxk.subsystems.lfs.params import LfsParams
from uxk.uapi.manifest import param


class LfsScenario(LfsParams):
    """A volume and what is written to it."""

    workload: Annotated[str, param(help="a synthetic workload or a bundled trace; see uxk run lfs-gc --help")] = ""
    trace: Annotated[str, param(help="a file with a trace, instead of a workload")] = ""
    format: Annotated[str, param(help="of the trace: msr, systor, alibaba, tencent, vscsi, ...")] = ""
    device: Annotated[str, param(help="which of the trace's devices or volumes; empty: all of them")] = ""
    page_bytes: Annotated[int, param(ge=512, le=1 << 20, unit="bytes", help="block size of a trace's volume")] = 4096
    pages: Annotated[int, param(ge=0, le=1 << 30, help="volume of a synthetic workload; 0: 262144")] = 0
    writes: Annotated[int, param(ge=0, le=1 << 40, help="user writes after the fill; 0: ten per page, or all")] = 0
    debt: Annotated[bool, param(help="count the blocks moved after each write, as latencies need it")] = False
