"""The candidates: what humans have published, and the parametrised family that the kernel has beside."""

from __future__ import annotations

from typing import Final

from uxk.subsystems.lfs.miniature import LEARNED, Policy, parse_policy

HUMANS: Final = (
    "sepbit/cb-age", "fadac/cb-age", "dac/cb-age", "sepbit/cb-sqrt", "mida/greedy", "mida/cb-sqrt", "nosep/greedy",
    "sepbit/d-choices", "warcip/d-choices", "sfs/d-choices",
)  # fmt: skip
"""The strongest over many workloads; the first is the kernel's default."""

NAMES: Final = tuple(each.name for each in LEARNED)
"""Parameters of ``rate/learned``, see :mod:`uxk.subsystems.lfs.fast.learned`."""
STEPS: Final[dict[str, int]] = dict(zip(NAMES[1:], (1, 12, 4, 12, 4, 2, 1, 12, 3, 2, 2), strict=True))
"""A small change of each but the half-life: counts that faded otherwise mislead for long."""
RATES: Final = {
    "even": (0, 2, 192, 40, 200, 40, 9, 5, 8, 8, 18, 16),
    "periodic": (18, 5, 200, 40, 184, 40, 13, 8, -8, 4, 20, 16),
    "steady": (0, 2, 200, 40, 200, 40, 4, 8, 0, 0, 16, 16),
    "tolerant": (0, 1, 200, 44, 200, 40, 8, 8, 0, 4, 16, 12),
    "low-water": (0, 1, 160, 40, 168, 40, 9, 5, 32, 8, 16, 16),
    "drifting": (10, 4, 176, 40, 184, 40, 9, 5, -8, 0, 16, 16),
    "slow-mean": (0, 4, 200, 40, 200, 40, 7, 3, -24, 0, 14, 16),
    "lossy": (0, 5, 200, 40, 200, 40, 9, 5, 24, 8, 16, 16),
    "files": (0, 0, 92, 20, 64, 18, 14, 16, 24, 0, 34, 12),
    "files-fine": (0, 0, 56, 20, 76, 18, 14, 16, 18, 4, 24, 8),
    "builds": (12, 2, 72, 42, 196, 52, 12, 1, 0, 2, 8, 16),
    "builds-old": (12, 2, 72, 42, 196, 52, 12, 1, 0, 2, 8, 20),
    "last": (0, 0, 80, 20, 160, 30, 16, 16, 0, 0, 16, 16),
}
"""Settings that complement one another over many workloads; the first is the best single one."""
CHANCE: Final = ("files-fine", "builds", "last", "low-water")
"""Settings that complement these when victims are drawn by chance: a log that is overwritten in circles gives the
cleaner that goes by age every block just before it dies."""
VARIATIONS: Final = 4
"""Places at the end of the portfolio that :mod:`uxk_gc.search` fills."""


def streams(logs: int, window: int = 64) -> list[Policy]:
    """Sequential streams apart: pages written one after the other die together (files, compactions)."""
    found = []
    for user, selection in ((2, "greedy"), (2, "d-choices"), (logs - 2, "cb-sqrt"), (logs - 2, "d-choices")):
        candidate = parse_policy(f"stream/{selection}", (max(user, 1), window))
        if candidate not in found:
            found.append(candidate)
    return found


def portfolio(logs: int, learned: bool = True, search: bool = False) -> list[Policy]:
    """All candidates for a volume with so many open logs; with ``search``, places for variations at the end."""
    found = [parse_policy(name) for name in HUMANS]
    if learned:
        found += streams(logs)
        found += [parse_policy("rate/learned", args) for args in RATES.values()]
        found += [parse_policy("rate/d-choices", RATES[name]) for name in CHANCE]
        found += [parse_policy("rate/learned", RATES["even"])] * (VARIATIONS if search else 0)
    return found
