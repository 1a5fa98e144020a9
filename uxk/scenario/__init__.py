"""Scenarios: modules, workloads, faults, an end, checks and invariants, as data.

Write one in TOML and run it with ``uxk run FILE``, or in Python as :class:`Scenario` and :func:`run` it.
"""

from __future__ import annotations

from uxk.faults.model import Fault as Fault
from uxk.scenario.model import Check as Check
from uxk.scenario.model import ClosedLoop as ClosedLoop
from uxk.scenario.model import Load as Load
from uxk.scenario.model import OpenLoop as OpenLoop
from uxk.scenario.model import Scenario as Scenario
from uxk.scenario.read import parse_toml as parse_toml
from uxk.scenario.read import read_scenario as read_scenario
from uxk.scenario.results import Result as Result
from uxk.scenario.run import run as run
