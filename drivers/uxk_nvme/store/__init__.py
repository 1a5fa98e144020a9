"""Where the device's bytes are: memory, a sparse file, or a raw image.

Contents live here at their logical address, whatever the medium's translation layer believes about flash pages; so
no error in the timing model can damage data.
"""

from __future__ import annotations

from typing import Final

import uxk
from uxk_nvme.store.base import GRANULE_BYTES, Saved, Store
from uxk_nvme.store.file import FileStore, open_raw, open_sparse
from uxk_nvme.store.intervals import Intervals
from uxk_nvme.store.marks import MemoryRecord, record_bytes
from uxk_nvme.store.ram import RamStore

__all__ = ["GRANULE_BYTES", "FileStore", "Intervals", "RamStore", "Saved", "Store", "open_store", "record_bytes"]

_EXPECTED: Final = "expected ram, sparse:PATH or file:PATH"


def open_store(
    backing: str = "ram",
    size_bytes: int = 64 << 20,
    lba_bytes: int = 512,
    *,
    integrity: bool = False,
    memory: memoryview | None = None,
    marks: memoryview | None = None,
    fresh: bool = False,
) -> Store:
    """The store that ``backing`` names: ``ram``, ``sparse:PATH`` or ``file:PATH``.

    A raw file says itself how big it is: look at ``size_bytes`` of the result.  ``memory`` is used for ``ram``; what
    it holds is kept (``fresh``: it holds nothing).  So are its blocks that cannot be read, in ``marks``
    (:func:`record_bytes` of them).  ParamError names what is wrong.
    """
    kind, colon, path = backing.partition(":")
    if kind != "file" and (size_bytes <= 0 or size_bytes % lba_bytes):
        raise uxk.ParamError(f"size={size_bytes}: expected a multiple of lba_bytes={lba_bytes}")
    match kind, colon:
        case "ram", "":
            store = RamStore(size_bytes, lba_bytes, integrity=integrity, memory=memory, fresh=fresh)
            if marks is not None:
                store.bad.keep(MemoryRecord(marks), size_bytes)
            return store
        case "sparse", ":":
            return open_sparse(path, size_bytes, lba_bytes, integrity=integrity)
        case "file", ":":
            return open_raw(path, lba_bytes, integrity=integrity)
        case _:
            raise uxk.ParamError(f"backing={backing!r}: {_EXPECTED}")
