"""Recording the block requests of a real program from the kernel's own tracepoints (``uxk record block``).

:mod:`lines` reads what the kernel prints and :mod:`columns` holds and writes it, both without I/O of their own;
:mod:`tracing`, :mod:`volume` and :mod:`device` deal with the machine, and :mod:`session` puts them together.
"""

from __future__ import annotations
