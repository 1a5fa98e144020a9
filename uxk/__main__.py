"""``python -m uxk`` is the ``uxk`` command."""

from __future__ import annotations

import sys

from uxk.cli import main

if __name__ == "__main__":
    sys.exit(main())
