"""Error rates and delays of the mode machine's sequential test: ``python -m bench.evidence [--runs N]``.

Null runs tell how often hints that change nothing are promoted within 200 epochs, looking after each; effects tell
how many epochs a promotion takes from the first.  Deterministic: stream ``n`` of numpy's default generator is run n.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from uxk.core.evidence import Evidence
from uxk.core.mode import ModeConfig

Floats: TypeAlias = NDArray[np.float64]
Noise: TypeAlias = Callable[[np.random.Generator, int], Floats]

CONFIG = ModeConfig()


def gauss(spread: float) -> Noise:
    """Independent normal noise."""
    return lambda random, n: random.normal(0, spread, n)


def student(spread: float, freedom: int) -> Noise:
    """Independent heavy-tailed noise; one degree of freedom is Cauchy's."""
    return lambda random, n: np.clip(spread * random.standard_t(freedom, n), -0.99, 0.99)


def correlated(spread: float, rho: float) -> Noise:
    """First-order autoregression with this standard deviation."""

    def draw(random: np.random.Generator, n: int) -> Floats:
        fresh = random.normal(0, spread * np.sqrt(1 - rho * rho), n)
        fresh[0] = random.normal(0, spread)
        for i in range(1, n):
            fresh[i] += rho * fresh[i - 1]
        return fresh

    return draw


NULLS: dict[str, Noise] = {
    "normal 1 %": gauss(0.01), "normal 3 %": gauss(0.03), "normal 5 %": gauss(0.05), "t(2) 3 %": student(0.03, 2),
    "Cauchy 2 %": student(0.02, 1), "AR(0.3) 3 %": correlated(0.03, 0.3), "AR(0.5) 3 %": correlated(0.03, 0.5),
    "AR(0.7) 3 %": correlated(0.03, 0.7),
}  # fmt: skip


def promoted_after(differences: Floats, config: ModeConfig = CONFIG) -> int | None:
    """Epochs until a promotion, looking after each; None if it never comes.  Differences are fractions."""
    evidence = Evidence(config.alpha_ppm, correlation_ppm=config.correlation_ppm)
    for value in differences:
        evidence.add(int(value * 1e6))
        if evidence.epochs >= config.epochs_min and evidence.reached:
            return evidence.epochs
    return None


def false_promotions(noise: Noise, runs: int, epochs: int = 200) -> float:
    """Share of null runs that are promoted."""
    count = sum(promoted_after(noise(np.random.default_rng(run), epochs)) is not None for run in range(runs))
    return count / runs


def delays(effect: float, spread: float, runs: int, epochs: int = 400) -> list[int]:
    """Epochs until a promotion, one figure for each run; ``epochs`` if none came."""
    noise = gauss(spread)
    return [promoted_after(effect + noise(np.random.default_rng(run), epochs)) or epochs for run in range(runs)]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    alpha, correlation = CONFIG.alpha_ppm / 1e6, CONFIG.correlation_ppm / 1e6
    print(f"alpha {alpha:.2f}, assumed correlation {correlation:.2f}, at least {CONFIG.epochs_min} epochs")
    print(f"{runs} runs of 200 epochs each")
    for name, noise in NULLS.items():
        print(f"  no effect, {name:12} promoted {false_promotions(noise, runs):.4f}")
    print("epochs to a promotion: median, 90th and 99th percentile")
    for effect in (0.02, 0.05, 0.10):
        for spread in (0.01, 0.03, 0.05):
            found = delays(effect, spread, runs)
            figures = " ".join(f"{int(np.percentile(found, q)):4}" for q in (50, 90, 99))
            print(f"  effect {effect:4.0%}, noise {spread:3.0%}: {figures}")


if __name__ == "__main__":
    main()
