"""A virtual NVMe controller and its driver: module ``nvme``.

The controller half (:mod:`uxk_nvme.controller` and what it names) emulates hardware: it fetches commands from rings in
memory, executes them on a medium, and posts completions.  The driver half (:mod:`uxk_nvme.host`) turns block requests
into such commands.  docs/nvme.md says which commands there are.
"""

from __future__ import annotations

from uxk_nvme.driver import Nvme
from uxk_nvme.params import NvmeParams

__all__ = ["Nvme", "NvmeParams"]
