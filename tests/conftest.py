"""Hypothesis profiles: ``ci`` (the default, repeatable) and ``soak`` (random, many examples; ``make soak``)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No timed assertions: a busy machine must not fail a test.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "soak", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
