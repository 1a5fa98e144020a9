"""``[[supervisors]]`` of a scenario: read, set up, judged."""

from __future__ import annotations

import pytest

import uxk
from uxk.errors import ConfigError, UsageError
from uxk.scenario.read import parse_toml

TEXT = """
until = "40ms"

[[modules]]
name = "null"

[[modules]]
name = "null"
instance = "mirror"

[[supervisors]]
name = "top"
children = ["null"]
max_restarts = 1
backoff_ns = "1us"

[[supervisors]]
name = "low"
strategy = "one_for_all"
children = ["mirror"]
parent = "top"

[[faults]]
kind = "crash"
module = "null"
at_ns = "1ms"

[[faults]]
kind = "crash"
module = "null"
at_ns = "2ms"

[[checks]]
value = "supervisors.top.alive"
op = "=="
than = false

[[checks]]
value = "supervisors.top.restarts"
op = "=="
than = 1
"""


def test_a_supervisor_that_gives_up() -> None:
    result = uxk.run(parse_toml(TEXT, "tree.toml"))
    assert result.ok and result["supervisors.low.restarts"] == 0, result.report()
    assert result.values["modules"]["mirror"]["restarts"] == 0


@pytest.mark.parametrize(
    ("old", "new", "error", "why"),
    [
        ('["null"]', '["nul"]', UsageError, r"supervisors\[0\]: supervisor 'top': no instance 'nul'"),
        ('parent = "top"', 'parent = "tip"', UsageError, r"supervisors\[1\]: .*no supervisor 'tip'"),
        ('name = "low"', 'name = "top"', ConfigError, "supervisors: 'top' is there 2 times"),
        ('"one_for_all"', '"all"', ConfigError, r"supervisors\[1\].strategy = 'all'"),
        ("max_restarts = 1", "max_restarts = 9999", ConfigError, r"supervisors\[0\].max_restarts = 9999"),
        ('backoff_ns = "1us"', 'backof_ns = "1us"', ConfigError, "unknown key 'backof_ns'"),
    ],
)
def test_mistakes_are_named(old: str, new: str, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        uxk.run(parse_toml(TEXT.replace(old, new), "tree.toml"))
