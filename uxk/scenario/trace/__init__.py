"""Block traces in the formats that people have: :func:`read_trace`, and :func:`to_pages` for log-structured volumes."""

from __future__ import annotations

from uxk.scenario.trace.model import Malformed as Malformed
from uxk.scenario.trace.model import Trace as Trace
from uxk.scenario.trace.model import TraceOp as TraceOp
from uxk.scenario.trace.read import FORMATS as FORMATS
from uxk.scenario.trace.read import guess_format as guess_format
from uxk.scenario.trace.read import looks_like as looks_like
from uxk.scenario.trace.read import read_trace as read_trace
from uxk.scenario.trace.split import Pages as Pages
from uxk.scenario.trace.split import to_pages as to_pages
