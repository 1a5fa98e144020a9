"""Seeded simulation: random faults and schedules against declared invariants, shrunk to what it takes to fail."""

from __future__ import annotations

from uxk.testing.exploring.explorer import Finding as Finding
from uxk.testing.exploring.explorer import Report as Report
from uxk.testing.exploring.explorer import explore as explore
from uxk.testing.exploring.files import read_trial as read_trial
from uxk.testing.exploring.files import write_trial as write_trial
from uxk.testing.exploring.shrink import shrink as shrink
from uxk.testing.exploring.trial import Outcome as Outcome
from uxk.testing.exploring.trial import Trial as Trial
from uxk.testing.exploring.trial import run_trial as run_trial
