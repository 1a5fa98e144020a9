"""Page workloads for log-structured volumes: :func:`load_pages` by name."""

from __future__ import annotations

from uxk.scenario.pages.bundled import Bundled as Bundled
from uxk.scenario.pages.bundled import bundled as bundled
from uxk.scenario.pages.load import HOLDOUTS as HOLDOUTS
from uxk.scenario.pages.load import WORKLOADS as WORKLOADS
from uxk.scenario.pages.load import Family as Family
from uxk.scenario.pages.load import PageRun as PageRun
from uxk.scenario.pages.load import as_run as as_run
from uxk.scenario.pages.load import generate as generate
from uxk.scenario.pages.load import load_pages as load_pages
from uxk.scenario.pages.load import workload_names as workload_names
