"""False promotions on the log-structured volume: ``python -m bench.lfs_null [--runs N] [WORKLOAD ...]``.

Two miniatures under the same policy, the kernel's default, see the same writes; a handful of other ones at the end
of the fill makes them differ from then on in everything but their distribution.  Whoever is promoted on such a
pair is promoted for nothing.  The noise is that of real epochs of write amplification, with its own spread, tails
and autocorrelation, so the count says whether the volume's model reckons with enough of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from uxk.core.evidence import Evidence, difference_ppm
from uxk.core.mode import ModeConfig
from uxk.scenario.pages import WORKLOADS, bundled, load_pages
from uxk.subsystems.lfs.miniature import Miniature, parse_policy
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.sample import make_sample
from uxk.subsystems.lfs.subsystem import CORRELATION_MAX_PPM

PAGES, SEGMENT_BLOCKS = 65_536, 128
"""Of synthetic workloads; a recording has its own pages."""
CORRELATIONS_PPM = {
    "0 to 0.2": (0, CORRELATION_MAX_PPM),
    "0.3 to 0.6": (ModeConfig().correlation_ppm, ModeConfig().correlation_max_ppm),
}
"""Autocorrelation that the volume's model reckons with, and that of other models."""


class Noise(NamedTuple):
    """What pairs without an effect did."""

    workload: str
    runs: int
    promoted: list[int]
    """For each of :data:`CORRELATIONS_PPM`."""
    spread_percent: float
    correlation: float
    """Between an epoch's difference and the next one's."""


def arms(workload: str, count: int, seed: int) -> list[list[int]]:
    """Write amplification in ppm of the epochs after the fill, of so many volumes that differ by chance alone."""
    params = LfsParams(segment_blocks=SEGMENT_BLOCKS)
    run = load_pages(workload, pages=PAGES if workload in WORKLOADS else None, seed=seed)
    sample = make_sample(run.volume_pages, SEGMENT_BLOCKS, params.sample_ratio)
    ops = run.pages.astype(np.int32)
    size = run.volume_pages // params.epochs_per_volume
    epochs = [sample.of(ops[start : start + size]) for start in range(0, len(ops), size)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shape = len(sample.pages), sample.segment_blocks, params.gp_ppm, params.logs
        volume = Miniature(*shape, parse_policy(params.default))
        for writes in epochs[: params.epochs_per_volume]:
            volume.run(writes)
        volume.run(rng.integers(0, len(sample.pages), 64).astype(np.int32))
        volume.epoch()
        costs = []
        for writes in epochs[params.epochs_per_volume :]:
            volume.run(writes)
            costs.append(volume.epoch().wa_ppm)
        found.append(costs)
    return found


def is_promoted(differences: Sequence[int], least_ppm: int, most_ppm: int) -> bool:
    """Whether the test that guards LEARNING would ever have let them pass."""
    config = ModeConfig()
    evidence = Evidence(config.alpha_ppm, correlation_ppm=least_ppm, correlation_max_ppm=most_ppm)
    for difference in differences:
        evidence.add(difference)
        if evidence.epochs >= config.epochs_min and evidence.reached:
            return True
    return False


def noise(workload: str, runs: int, seed: int) -> Noise:
    """So many pairs on one workload."""
    found = arms(workload, runs + 1, seed)
    pairs = [[difference_ppm(*each) for each in zip(*two, strict=True)] for two in pairwise(found)]
    promoted = [sum(is_promoted(pair, *bounds) for pair in pairs) for bounds in CORRELATIONS_PPM.values()]
    matrix = np.array(pairs, float) / 10_000
    matrix = matrix[matrix.std(1) > 0]
    if not len(matrix):
        return Noise(workload, runs, promoted, 0.0, 0.0)
    correlation = np.mean([np.corrcoef(row[1:], row[:-1])[0, 1] for row in matrix])
    return Noise(workload, runs, promoted, float(np.mean(matrix.std(1))), float(correlation))


def main(args: Sequence[str]) -> int:
    """Prints one line for each workload, and the sum."""
    known = [*WORKLOADS, *bundled()]
    parser = argparse.ArgumentParser(prog="python -m bench.lfs_null", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=80, help="pairs per workload")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(known)}; default: all")
    options = parser.parse_args(args)
    for name in options.workloads:
        if name not in known:
            parser.error(f"workload {name!r}: expected one of {', '.join(known)}")
    print(f"{'workload':<20}{'pairs':>7}{'spread':>9}{'lag 1':>8}" + "".join(
        f"{f'promoted, {bounds}':>26}" for bounds in CORRELATIONS_PPM
    ))  # fmt: skip
    found = []
    for name in options.workloads or known:
        each = noise(name, options.runs, options.seed)
        found.append(each)
        print(f"{name:<20}{each.runs:>7}{each.spread_percent:>8.1f}%{each.correlation:>8.2f}" + "".join(
            f"{number:>26}" for number in each.promoted
        ), flush=True)  # fmt: skip
    runs = sum(each.runs for each in found)
    sums = [sum(each.promoted[index] for each in found) for index in range(len(CORRELATIONS_PPM))]
    shares = "".join(f"{f'{count} ({100 * count / runs:.2f} %)':>26}" for count in sums)
    print(f"{'all':<20}{runs:>7}{'':>17}{shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
