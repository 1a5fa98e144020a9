"""For authors of modules: kernels to test with, the conformance suite, and extensions that misbehave on purpose.

* :func:`boot` gives a kernel; :mod:`uxk.testing.fixtures` gives it as a pytest fixture.
* :func:`residue` says what is left over; :func:`after_turns` and :func:`crash` intervene at an exact point;
  :class:`Ledger` submits requests and sees to it that each is answered exactly once.
* :func:`all_checks` and :func:`run_checks` are the conformance suite (``uxk check`` in a shell).
* :func:`volume` is a log-structured volume at work, for agents that advise its collector.
* :mod:`uxk.testing.hostile` holds extensions that break the rules, one rule each.
"""

from __future__ import annotations

from uxk.testing.checks import Result, all_checks, run_checks
from uxk.testing.kernels import Ledger, after_turns, boot, crash, residue, unload_all, usage
from uxk.testing.subject import Check, CheckFailure, Subject, subject
from uxk.testing.volumes import volume

__all__ = [
    "Check", "CheckFailure", "Ledger", "Result", "Subject",
    "after_turns", "all_checks", "boot", "crash", "residue", "run_checks", "subject", "unload_all", "usage",
    "volume",
]  # fmt: skip
