"""Named random streams: one seed, independent numbers for every name.

A stream's numbers depend on the run's seed and its own name alone, so adding a component never shifts
another's (numpy.random.SeedSequence with the name's SHA-256 as spawn key).
"""

from __future__ import annotations

import hashlib

import numpy as np

from uxk import limits
from uxk.errors import UsageError


class RandomStreams:
    """Hands out one generator per name; the same name gives the same, advancing, generator."""

    __slots__ = ("_streams", "seed")

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= limits.U64_MAX:
            raise UsageError(f"seed {seed}: expected 0 to {limits.U64_MAX}")
        self.seed = seed
        self._streams: dict[str, np.random.Generator] = {}

    def stream(self, name: str) -> np.random.Generator:
        """The generator called ``name``."""
        generator = self._streams.get(name)
        if generator is None:
            generator = self._streams[name] = np.random.Generator(np.random.PCG64(self.sequence(name)))
        return generator

    def sequence(self, name: str) -> np.random.SeedSequence:
        """The seed sequence behind :meth:`stream`, for those who need another bit generator."""
        digest = hashlib.sha256(name.encode()).digest()
        key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4))
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def integer(self, name: str) -> int:
        """A 63-bit number derived from the name alone: a seed for another process."""
        return int(self.sequence(name).generate_state(1, np.uint64)[0]) >> 1
