"""Random numbers of policies: small integers, the same in both engines."""

from __future__ import annotations

from typing import Final

MODULUS: Final = (1 << 31) - 1
MULTIPLIER: Final = 48_271


def seeded(seed: int) -> int:
    """A state from any integer: 1 .. ``MODULUS`` - 1."""
    return 1 + seed % (MODULUS - 1)


def following(state: int) -> int:
    """The next state, which is also the next random number (Park, Miller & Stockmeyer, CACM 36(7), 1993).

    All products fit 63 bits, so that machine integers compute the same.
    """
    return state * MULTIPLIER % MODULUS
