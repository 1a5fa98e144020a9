"""A process that writes a log until it is killed: ``python datalog_writer.py DIR SEED``.

Prints, in one write each, the number of the last generation that is in the file: what the killer may rely on.
"""

from __future__ import annotations

import os
import random
import sys

import numpy as np

from uxk.bridges.datalog.format import Description
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.datalog.writer import LogWriter, Origin, Publication

DTYPE = np.dtype([("generation", "<u4"), ("value", "<u8")])
SCHEMA = tuple((name, DTYPE[name].str) for name in DTYPE.names or ())


def rows_of(generation: int) -> np.ndarray:
    """What a generation's rows are: they can be checked from their number alone."""
    rows = np.empty(generation * 7919 % 200, DTYPE)
    rows["generation"] = generation
    rows["value"] = np.arange(len(rows), dtype="<u8") * 1_000_003 + generation
    return rows


def publication(generation: int, name: str = "d0") -> Publication:
    """One generation, of the dataset ``m0/NAME``."""
    description = Description("test", "m0", name, SCHEMA, 200)
    return Publication(description, DTYPE.itemsize, generation * 10, generation, 0, rows_of(generation).tobytes())


def main(folder: str, seed: int) -> None:
    """Writes groups of publications, never ends."""
    rng = random.Random(seed)
    writer = LogWriter(
        folder, Origin(seed, "virtual"), DataLogSettings(segment_bytes=1 << 16, max_bytes=1 << 30, sync="none")
    )
    generation = 0
    while True:
        group = [publication(generation + i) for i in range(rng.randrange(1, 20))]
        writer.write(group)
        assert not writer.counters.lost_batches, writer.counters.error
        generation += len(group)
        os.write(1, b"%d\n" % generation)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
