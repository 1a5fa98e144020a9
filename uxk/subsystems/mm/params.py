"""Settings of the emulated memory."""

from __future__ import annotations

from typing import Annotated

from uxk.uapi.manifest import Params, param


class MmParams(Params):
    """One zone of memory and the sysctls of ``vm`` that matter here."""

    pages: Annotated[int, param(ge=256, le=1 << 24, help="page frames of 4 KiB")] = 4_096
    min_free_kbytes: Annotated[int, param(ge=0, le=1 << 22, help="vm.min_free_kbytes; 0: as Linux computes it")] = 0
    dirty_ratio: Annotated[
        int, param(ge=1, le=100, help="vm.dirty_ratio: per cent of dirtyable memory where writers must wait")
    ] = 20
    dirty_background_ratio: Annotated[
        int, param(ge=0, le=100, help="vm.dirty_background_ratio: per cent where the flusher begins")
    ] = 10
    pool_pages: Annotated[
        int, param(ge=0, le=4_096, help="pages of the mempools of flusher and cleaner each; 0: none, to show why")
    ] = 32
