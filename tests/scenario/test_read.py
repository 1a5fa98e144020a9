"""Scenario files and options: good ones are read as written, hostile ones are refused with a useful message."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.errors import ConfigError
from uxk.scenario import Check, ClosedLoop, Fault, Load, OpenLoop, Scenario, parse_toml, read_scenario
from uxk.scenario.find import bundled, open_scenario
from uxk.scenario.read import FILE_MAX_BYTES, with_options

GOOD = """
name = "everything"
description = "one of each"
seed = 7
until = "1.5s"
clock = "charged"
cost = { crossing_ns = 2000 }
costs_ns = { null = 1500 }
invariants = ["progress"]
invariant_interval_ns = "2ms"

[[modules]]
name = "null"
instance = "disk0"
params = { size = "64MiB", latency_ns = "10us" }

[[workloads]]
device = "disk0"
depth = 4
think_ns = "1us"
size_bytes = "64KiB"
span_bytes = "1MiB"
verify = true

[[workloads]]
loop = "open"
name = "arrivals"
device = "disk0"
rate_per_s = 1000
arrival = "periodic"
duration_ns = "1ms"

[[faults]]
kind = "hang"
module = "disk0"
at_ns = "5ms"
duration_ns = "1ms"

[[checks]]
value = "modules.disk0.completed"
op = ">="
than = 1
"""


def test_a_file_is_read_as_written() -> None:
    assert parse_toml(GOOD, "x.toml") == Scenario(
        name="everything", description="one of each", seed=7, until=1_500_000_000, clock="charged",
        cost=uxk.CostModel(crossing_ns=2000), costs_ns={"null": 1500}, invariants=("progress",),
        invariant_interval_ns=2_000_000,
        modules=(Load(name="null", instance="disk0", params={"size": "64MiB", "latency_ns": "10us"}),),
        workloads=(
            ClosedLoop(device="disk0", depth=4, think_ns=1000, size_bytes=65536, span_bytes=1 << 20, verify=True),
            OpenLoop(name="arrivals", device="disk0", rate_per_s=1000, arrival="periodic", duration_ns=1_000_000),
        ),
        faults=(Fault(kind="hang", module="disk0", at_ns=5_000_000, duration_ns=1_000_000),),
        checks=(Check(value="modules.disk0.completed", op=">=", than=1),),
    )  # fmt: skip


def test_the_name_comes_from_the_file() -> None:
    assert parse_toml("", "some/where/quiet.toml").name == "quiet"


HOSTILE = [
    ("naem = 'x'", "scenario: unknown key 'naem' (did you mean 'name'?)"),
    ("[[workload]]\ndevice = 'd'", "unknown key 'workload' (did you mean 'workloads'?)"),
    ("[[workloads]]\ndevice = 'd'\ndepht = 3", "workloads[0]: unknown key 'depht' (did you mean 'depth'?)"),
    ("[[workloads]]\ndevice='d'\nloop='open'\nrate_per_s=1\nthink_ns=1", "workloads[0]: unknown key 'think_ns'"),
    ("[[workloads]]\ndevice = 'd'\nloop = 'shut'", "Invalid value 'shut'"),
    ("[[workloads]]\ndevice = 'd'\nloop = 'open'", "missing required field `rate_per_s`"),
    ("[[workloads]]\ncount = 1", "missing required field `device`"),
    ("[[workloads]]\ndevice = 'd'\ndepth = 0", "depth = 0: Expected `int` >= 1"),
    ("[[workloads]]\ndevice = 'd'\ncount = -1", "count = -1: Expected `int` >= 0"),
    ("[[workloads]]\ndevice = 'd'\nthink_ns = '10 parsecs'", "workloads[0].think_ns = '10 parsecs': unknown unit"),
    ("[[workloads]]\ndevice = 'd'\nsize_bytes = '1GiB'", "size_bytes = 1073741824: Expected `int` <= 131072"),
    ("[[workloads]]\ndevice = 'd'\nsize_bytes = 'big'", "size_bytes = 'big': not an integer"),
    ("[[workloads]]\ndevice = 'd'\nread_ppm = 0.5", "read_ppm = 0.5: Expected `int`, got `float`"),
    ("[[workloads]]\ndevice = 'd'\nverify = 1", "verify = 1: Expected `bool`, got `int`"),
    ("[[workloads]]\ndevice = 'd'\ncount = 99999999999999999999999", "count"),
    ("[[workloads]]\ndevice = 'd'\ncount = 1\nsize_bytes = 4096\nspan_bytes = 100", "less than size_bytes"),
    ("[[workloads]]\ndevice = 'd'\ncount = 1\nverify = true\nspan_bytes = '1TiB'", "too many to verify"),
    ("[[workloads]]\ndevice = 'd'\ncount = 1\nverify = true\nsize_bytes = 8", "verify needs 16"),
    ("[[workloads]]\ndevice = 'd'\ncount = 1\nverify = true\ndepth = 999", "one request per block"),
    ("[[workloads]]\ndevice = 'd'", "it never ends"),
    ("[[workloads]]\ndevice='d'\ncount=1\n[[workloads]]\ndevice='d'\ncount=1", "workloads: 'load' is there 2 times"),
    ("[[workloads]]\ndevice = 'd'\ncount = 1\nname = 'a.b'", "name = 'a.b': Expected `str` matching regex"),
    ("workloads = 3", "workloads = 3: Expected `array`, got `int`"),
    ("workloads = [3]", "workloads[0]"),
    ("[[modules]]\nname = 'a'\n[[modules]]\nname = 'a'", "modules: 'a' is there 2 times"),
    ("[[modules]]\nname = 'a-b'\n[[modules]]\nname = 'c'\ninstance = 'a_b'", "modules: 'a_b' is there 2 times"),
    ("[[modules]]\ninstance = 'a'", "modules[0]: needs a name or a file"),
    ("[[modules]]\nname = 'a'\nfile = 'b'", "modules[0]: needs a name or a file, and not both"),
    ("[[modules]]\nname = 'a'\nparams = 3", "modules[0].params = 3: Expected `object`, got `int`"),
    ("[[faults]]\nkind = 'explode'\nmodule = 'm'", "faults[0].kind = 'explode': Invalid enum value"),
    ("[[faults]]\nkind = 'drop'\nmodule = 'm'\nprobability_ppm = 2000000", "<= 1000000"),
    ("[[faults]]\nkind = 'drop'\nmodule = 'm'\nat_ns = '-5ms'", "at_ns = -5000000: Expected `int` >= 0"),
    ("[[faults]]\nkind='drop'\nmodule='m'\nname='x'\n[[faults]]\nkind='drop'\nmodule='m'\nname='x'", "2 times"),
    ("[[checks]]\nvalue = 'a'\nop = '~'\nthan = 1", "checks[0].op = '~': Invalid enum value"),
    ("[[checks]]\nvalue = 'a'\nop = '=='\nthan = [1]", "checks[0].than"),
    ("until = 'tomorrow'", "until = 'tomorrow': not an integer"),
    ("until = 0", "until = 0"),
    ("until = '-1s'", "until = -1000000000"),
    ("until = true", "until"),
    ("clock = 'real'", "clock = 'real': Invalid enum value"),
    ("seed = -1", "seed = -1"),
    ("drive = 'os.system'", "unknown key 'drive'"),
    ("costs_ns = { a = -1 }", "costs_ns"),
    ("name = ''", "name = ''"),
    ("name = '" + "x" * 1000 + "'", "length <= 55"),
    ("x" * 5000 + " = 1", "unknown key 'xxx"),
    ("a = ", "Invalid value"),
    ("a = 1\na = 2", "a"),
    ("a = " + "[" * 100_000, "x.toml"),
    ("until = 0x" + "f" * 100, "until"),
]


@pytest.mark.parametrize(("text", "complaint"), HOSTILE)
def test_hostile_files_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "x.toml")
    assert str(caught.value).startswith("x.toml: ")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 1000


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["device", "loop", "depth", "count", "verify", "kind", "module", "at_ns", "value", "op", "name"])


@given(st.dictionaries(
    st.sampled_from([*Scenario.__struct_fields__, "x"]),
    JSONISH | st.lists(st.dictionaries(KEYS, JSONISH | st.sampled_from(["closed", "open", "crash"])), max_size=3),
))  # fmt: skip
def test_whatever_a_table_holds_it_is_read_or_refused(table: dict[str, object]) -> None:
    from uxk.scenario.read import convert

    with suppress(ConfigError):  # nothing else may come out
        convert({"name": "x", **table}, Scenario).validate()


def test_files_are_bounded_and_their_errors_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="No such file"):
        read_scenario(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="no UTF-8"):
        read_scenario(path)
    path.write_bytes(b"#" * (FILE_MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_scenario(path)
    with pytest.raises(ConfigError, match="directory"):
        read_scenario(tmp_path)


def test_a_module_file_is_taken_from_the_scenarios_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[[modules]]\nfile = 'mine.py'")
    assert read_scenario(path)[0].modules[0].file == str(tmp_path / "mine.py")


def test_bundled_scenarios_are_found_by_name() -> None:
    assert "crash-under-load" in bundled()
    for name in set(bundled()) - {"lfs-gc", "reclaim-deadlock"}:  # studies
        assert open_scenario(name)[0].name == name
    with pytest.raises(ConfigError, match="did you mean 'crash-under-load'"):
        open_scenario("crash-under-lode")


def test_a_python_file_must_define_one_scenario(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("import uxk\nA = uxk.Scenario(name='a')\n")
    assert open_scenario(path)[0].name == "a"
    path.write_text("import uxk\n")
    with pytest.raises(ConfigError, match="defines 0 scenarios"):
        open_scenario(path)
    path.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        open_scenario(path)


def test_python_scenarios_are_type_checked_when_they_run() -> None:
    with pytest.raises(ConfigError, match="workloads: Expected `int`"):
        Scenario(name="x", workloads=(ClosedLoop(device="d", count="many"),)).validate()  # type: ignore[arg-type]


# --- options ---------------------------------------------------------------------------------------------


def test_options_replace_values() -> None:
    scenario = with_options(
        parse_toml(GOOD, "x.toml"),
        {
            "until": "idle", "seed": "9", "workloads.load.count": "5", "workloads.1.rate_per_s": "7",
            "faults.hang-0.at_ns": "1s", "modules.disk0.params.size": "1GiB", "modules.disk0.params.new": "3",
            "workloads.load.verify": "false", "costs_ns.null": "9", "cost.entry_ns": "1", "checks.0.than": "12",
        },
    )  # fmt: skip
    assert (scenario.until, scenario.seed, scenario.costs_ns, scenario.cost.entry_ns) == ("idle", 9, {"null": 9}, 1)
    closed, arrivals = scenario.workloads
    assert isinstance(arrivals, OpenLoop)
    assert (closed.count, closed.verify, arrivals.rate_per_s) == (5, False, 7)
    assert scenario.faults[0].at_ns == 1_000_000_000
    assert scenario.modules[0].params == {"size": "1GiB", "latency_ns": "10us", "new": 3}
    assert scenario.checks[0].than == 12


@pytest.mark.parametrize(
    ("option", "text", "complaint"),
    [
        ("sead", "1", "unknown key 'sead' (did you mean 'seed'?)"),
        ("drive", "1", "unknown key 'drive'"),
        ("workloads.laod.depth", "1", "no element 'laod' (did you mean 'load'?)"),
        ("workloads.load.dept", "1", "unknown key 'dept' (did you mean 'depth'?)"),
        ("workloads.load", "1", "names no field"),
        ("workloads", "1", "workloads"),
        ("workloads.load.depth", "x", "workloads.load.depth = 'x': Expected `int`"),
        ("workloads.load.depth", "0", "Expected `int` >= 1"),
        ("workloads.load.depth.x", "0", "is inside a plain value"),
        ("workloads.load.think_ns", "1 fortnight", "unknown unit"),
        ("until", "soon", "not an integer"),
        ("", "1", "unknown key ''"),
        ("workloads.arrivals.duration_ns", "0", None),
        ("costs_ns.null", "-1", "costs_ns"),
        ("costs_ns.null", "x", "costs_ns"),
    ],
)
def test_impossible_options_are_refused(option: str, text: str, complaint: str | None) -> None:
    scenario = parse_toml(GOOD, "x.toml")
    if complaint is None:
        assert with_options(scenario, {option: text})
        return
    with pytest.raises(ConfigError) as caught:
        with_options(scenario, {option: text})
    assert complaint in str(caught.value)
