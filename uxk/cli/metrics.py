"""``uxk metrics``: a running kernel's figures, in the words of Prometheus."""

from __future__ import annotations

import argparse
import sys

from uxk.cli.common import GOOD, Subparsers, add_verb, print_json, with_kernel


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "metrics", metrics, kernel=True, help="print metrics for Prometheus", json=True)
    parser.add_argument("--openmetrics", action="store_true", help="as OpenMetrics")


def metrics(args: argparse.Namespace) -> int:
    """Needs a running kernel, and the extra ``metrics`` except for JSON."""
    snapshot = with_kernel(args, lambda kernel: kernel.metrics())
    if args.json:
        print_json(snapshot)
        return GOOD
    from uxk.bridges.metrics.families import OPENMETRICS, TEXT, render

    sys.stdout.write(render(snapshot, OPENMETRICS if args.openmetrics else TEXT)[0].decode())
    return GOOD
