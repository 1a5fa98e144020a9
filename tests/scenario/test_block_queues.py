"""The table ``[blk]`` of a scenario: workloads go through disks, and their data stay whole."""

from __future__ import annotations

import pytest

from uxk.errors import ConfigError
from uxk.scenario.model import Scenario
from uxk.scenario.read import parse_toml
from uxk.scenario.run import run_one

TEXT = """
name = "through-a-disk"
seed = 5

[blk]
cpus = 2

[blk.devices.null0]
nr_requests = 12
scheduler = "mq-deadline"
nomerges = 1
iosched = {{ fifo_batch = 4 }}

[[modules]]
name = "null"
params = {{ latency_ns = "20us" }}

[[workloads]]
device = "null0"
count = 400
depth = 24
{more}

[[checks]]
value = "blk.null0.reads"
op = ">"
than = 0
"""


def scenario(more: str = "") -> Scenario:
    return parse_toml(TEXT.format(more=more), "through.toml")


def test_workloads_go_through_the_disk() -> None:
    result = run_one(scenario())
    assert result.exit_code == 0
    disk, load = result.values["blk"]["null0"], result.values["workloads"]["load"]
    assert disk["scheduler"] == "mq-deadline"
    assert disk["reads"] + disk["reads_merged"] == load["reads"]
    assert disk["writes"] + disk["writes_merged"] == load["writes"]
    assert disk["reads_bytes"] == load["reads"] * 4096
    assert disk["inflight"] == 0
    assert load["completed"] == 400


def test_a_run_can_be_repeated() -> None:
    first, second = run_one(scenario()), run_one(scenario())
    assert first.event_hash == second.event_hash
    assert first.values["blk"] == second.values["blk"]


def test_a_scenario_without_the_table_is_what_it_was() -> None:
    text = TEXT.format(more="")
    head, rest = text.split("[blk]")[0], text.split("[[modules]]", 1)[1].split("[[checks]]")[0]
    result = run_one(parse_toml(f"{head}[[modules]]{rest}", "plain.toml"))
    assert "blk" not in result.values
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("devices.null0", "devices.nul0", "no disk 'nul0'.*did you mean 'null0'"),
        ("nr_requests", "nr_request", "unknown key 'nr_request'.*did you mean 'nr_requests'"),
        ("nr_requests = 12", "nr_requests = 0", r"blk.devices.null0.nr_requests = 0: .*integer in"),
        ("nr_requests = 12", "nr_requests = [1]", r"nr_requests = \[1\]: expected a number or a text"),
        ("mq-deadline", "bfq", "unknown; known: none, mq-deadline|known: none, mq-deadline"),
        ("fifo_batch = 4", "fifo_bacth = 4", "iosched.fifo_bacth"),
        ("cpus = 2", "cpus = 0", "blk.cpus"),
        ("cpus = 2", "cpu = 2", "unknown key 'cpu'.*did you mean 'cpus'"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(old: str, new: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        run_one(parse_toml(TEXT.format(more="").replace(old, new), "wrong.toml"))


def test_options_reach_into_the_table() -> None:
    result = run_one(scenario(), options={"blk.devices.null0.nomerges": "2", "blk.cpus": "3"})
    assert result.values["blk"]["null0"]["reads_merged"] == 0
