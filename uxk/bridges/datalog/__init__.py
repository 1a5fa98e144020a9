"""The dataset log: what proxies publish, kept in a directory (R46, R47); see docs/datasets.md."""

from __future__ import annotations
