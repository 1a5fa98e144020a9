"""Real programs to record with ``uxk record block``; each works in its current folder, and needs nothing of uxk.

The bundled traces were made with them: ``uxk/scenario/traces/README.md`` has the commands.
"""

from __future__ import annotations
