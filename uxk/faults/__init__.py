"""Faults as data: what goes wrong, with whom, when and how often; see :class:`~uxk.faults.model.Fault`."""

from __future__ import annotations

from uxk.faults.model import Fault as Fault
from uxk.faults.plan import FaultPlan as FaultPlan
