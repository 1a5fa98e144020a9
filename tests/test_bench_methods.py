"""The comparison of methods: the same decision everywhere, and only one that makes the kernel wait."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import methods
from bench import methods_policy as policy
from bench.methods_flow import Setup
from bench.methods_run import Outcome, play, prepared, run_ways
from bench.methods_table import (
    ENTRIES,
    as_markdown,
    as_text,
    hang_table,
    main_table,
    replaced,
    traffic_table,
    workload_table,
)
from bench.methods_ways import WAYS, Events, Way
from uxk.errors import ConfigError
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies import CbAge, Policy, SepGC
from uxk.subsystems.lfs.reference import Volume

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
SMALL = Setup(pages=1_024, segment_blocks=16, writes=600, gap_ns=4_000)
EQUAL = replace(SMALL, clock="virtual", push=0, poll_ns=400)
"""Thinking is free, and everybody hears of every change before the next decision."""
ADVISED = [name for name in WAYS if name != "default"]
ASKED = [name for name in ADVISED if name not in ("in-kernel", "compiled")]


# --- the decision ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=1500))
def test_the_policy_is_the_volumes_own_cost_benefit(writes: list[int]) -> None:
    volume = Volume(Geometry(pages=256, segment_blocks=8, logs=2), Policy(SepGC(), CbAge()))
    shape = policy.Shape(volume.size, volume.most)
    for page in [*range(256), *writes]:
        volume.write(page, gc=False)
        while volume.triggered and (victim := volume.select()) >= 0:
            assert policy.rank(policy.rows_of(volume).tolist(), shape)[0] == victim
            volume.collect(victim)
    best = policy.rank(policy.rows_of(volume).tolist(), shape)
    assert best[:1] == ((volume.select(),) if volume.select() >= 0 else ())
    assert len(best) == len(set(best)) <= policy.DEPTH


def test_state_and_answers_survive_their_way_as_bytes_and_as_text() -> None:
    rows = policy.rows_of(prepared(SMALL)[0])
    state = policy.State(123, rows.tolist())
    assert policy.unpack_state(policy.pack_state(123, rows)) == state
    assert policy.parse_state(policy.state_text(123, rows)) == state
    for answer in (policy.Answer(7, (3, 1, 2)), policy.Answer(0, ())):
        assert policy.unpack_answer(policy.pack_answer(answer)) == answer
        assert policy.parse_answer(policy.answer_text(answer)) == answer


@pytest.mark.parametrize("data", [b"", b"1234567", b"12345678a", bytes(8 + 4 * (policy.DEPTH + 1))])
def test_bytes_that_are_no_answer_are_none(data: bytes) -> None:
    assert policy.unpack_answer(data) is None


@pytest.mark.parametrize("text", ["", "x", "1 -2", "1 ²", "1 2.5", " ".join("1" * (policy.DEPTH + 2))])
def test_text_that_is_no_answer_is_none(text: str) -> None:
    assert policy.parse_answer(text) is None


# --- the methods -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def equal() -> dict[str, Outcome]:
    return run_ways(ADVISED, EQUAL)


@pytest.fixture(scope="module")
def charged() -> dict[str, Outcome]:
    return run_ways(list(WAYS), SMALL)


@pytest.mark.parametrize("name", ADVISED)
def test_equal_information_makes_equal_decisions(equal: dict[str, Outcome], name: str) -> None:
    run, inside = equal[name], equal["in-kernel"]
    assert run.decisions > 50
    assert run.victims == inside.victims
    assert run.same == run.followed == run.decisions
    assert run.wa_ppm == inside.wa_ppm


@pytest.mark.parametrize("name", WAYS)
def test_only_the_upcall_makes_a_decision_wait_for_user_space(charged: dict[str, Outcome], name: str) -> None:
    run = charged[name]
    assert run.blocking == (run.decisions if name == "upcall" else 0)
    assert run.cycles == run.dropped == 0
    assert bool(run.report) == (name == "upcall")


def test_the_wait_for_graph_says_who_waits_for_what(charged: dict[str, Outcome]) -> None:
    report = charged["upcall"].report
    assert "a decision of the kernel waits for an extension" in report
    wait = r"kernel lfs0 cleaner waits for the adviser's answer, to decide since .*, held by instance methods_upcall"
    assert re.search(wait, report)


def test_what_is_charged_is_where_it_is_spent(charged: dict[str, Outcome]) -> None:
    assert charged["in-kernel"].wait_median_ns == policy.THINK_NS
    assert charged["upcall"].wait_median_ns > policy.THINK_NS
    for name in ASKED:
        if name != "upcall":
            assert charged[name].wait_max_ns == charged[name].delay_max_ns == 0
            assert charged[name].age_median_ns > 0
    assert charged["default"].crossings == charged["in-kernel"].crossings == charged["in-kernel"].bytes == 0
    assert [name for name, run in charged.items() if run.shared_bytes] == ["hints"]


def test_advice_is_worth_something_to_the_kpi(charged: dict[str, Outcome]) -> None:
    for name in ADVISED:
        if name != "sysfs":  # polls too seldom for a volume as small as this one
            assert charged[name].wa_ppm < charged["default"].wa_ppm, name


@pytest.mark.parametrize("name", WAYS)
def test_a_run_repeats(charged: dict[str, Outcome], name: str) -> None:
    again = run_ways([name], SMALL)[name]
    host = {"host_ns": 0, "cpu_ns": 0}
    assert replace(again, **host) == replace(charged[name], **host)


@pytest.mark.parametrize("name", ASKED)
def test_when_the_adviser_hangs_only_the_upcall_stops_writes(name: str) -> None:
    run = run_ways([name], replace(SMALL, hang_ns=600_000, ttl_ns=200_000))[name]
    assert run.followed < run.decisions
    if name == "upcall":
        assert run.delay_max_ns >= 10_000_000
    else:
        assert run.writes_delayed == run.blocking == 0


def test_the_compiled_policy_needs_nobody_once_it_is_in_force(charged: dict[str, Outcome]) -> None:
    run, hung = charged["compiled"], run_ways(["compiled"], replace(SMALL, hang_ns=600_000))["compiled"]
    assert run.crossings == run.bytes == run.entries == 0 and run.followed == run.same == run.decisions
    assert 0 < run.wait_median_ns < policy.THINK_NS and hung.victims == run.victims


def test_a_learned_policy_loses_next_to_nothing_by_being_compiled() -> None:
    from bench import methods_learned as learned

    setup = replace(SMALL, pages=4096, segment_blocks=64, writes=1500)
    (default,), (float_model,), (injected,) = (
        learned.run(way, setup, [1]) for way in (Way, learned.Float, learned.Learned)
    )
    assert abs(injected.wa_ppm - float_model.wa_ppm) < float_model.wa_ppm // 100 and injected.wa_ppm < default.wa_ppm
    assert injected.crossings == 0 and injected.followed == injected.decisions > 10


# --- what the kernel does not believe ----------------------------------------------------------------


class Liar(Way):
    """Recommends what is none, is not sealed, comes from the future, or is too old; a different one each time."""

    def found(self) -> policy.Answer | None:
        now_ns, volume = self.kernel.now_ns, self.volume
        self.lies = getattr(self, "lies", 0) + 1
        head = next(segment for segment in volume.heads if segment >= 0)
        wrong = (volume.segments, 1 << 31, head, volume.clean[-1])
        best = policy.rank(policy.rows_of(volume).tolist(), self.cleaner.shape)
        late = (now_ns + 1, now_ns - self.setup.ttl_ns - 1)
        return policy.Answer(now_ns, wrong) if self.lies % 3 == 0 else policy.Answer(late[self.lies % 3 - 1], best)


def test_lies_are_not_followed() -> None:
    liar, default = trio.run(play, Liar, SMALL), run_ways(["default"], SMALL)["default"]
    assert liar.followed == 0
    assert liar.victims == default.victims


class Lossy(Events):
    """Every fifth batch is lost."""

    lost = 0

    def send(self, batch: bytes) -> bool:
        Lossy.lost += 1
        return Lossy.lost % 5 != 0 and super().send(batch)


def test_lost_events_are_made_good_by_a_snapshot(equal: dict[str, Outcome]) -> None:
    run = trio.run(play, Lossy, EQUAL)
    assert Lossy.lost > 100
    assert run.same > run.decisions * 3 // 4
    assert run.followed == run.decisions


def test_text_that_does_not_fit_into_an_attribute_is_refused() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run_ways(["sysfs"], replace(SMALL, pages=16_384))
    assert caught.group_contains(ConfigError, match=r"an attribute has at most 4095: expected fewer pages")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("pages", 1, "pages = 1: expected at least 1024"), ("gap_ns", 0, "gap_ns = 0"), ("push", -1, "push = -1")],
)
def test_settings_out_of_range_are_named(name: str, value: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        Setup(**{name: value})


# --- tables ------------------------------------------------------------------------------------------


def test_tables_have_a_cell_for_each_head(charged: dict[str, Outcome]) -> None:
    runs = {name: [run, run] for name, run in charged.items()}
    for cells in (traffic_table(runs), main_table(runs), hang_table(charged)):
        assert {len(row) for row in cells} == {len(cells[0])}
        assert len(cells) == len(WAYS) + 1
        assert len({len(line.split("|")) for line in as_markdown(cells).splitlines()}) == 1
        assert as_text(cells).splitlines()[-1].startswith("compiled")


def test_what_hints_keep_is_a_share_of_the_advantage(charged: dict[str, Outcome]) -> None:
    bounds = {"default": replace(charged["default"], wa_ppm=3_000_000), "in-kernel": charged["in-kernel"]}
    bounds["in-kernel"] = replace(bounds["in-kernel"], wa_ppm=2_000_000)
    hints = [replace(charged["hints"], wa_ppm=ppm, age_median_ns=1_500) for ppm in (2_000_000, 2_500_000, 3_100_000)]
    cells = workload_table({"x": {**bounds, **dict(zip((0, 1, 4), hints, strict=True))}})
    assert cells[0][3:] == ("every write", "every victim", "every 4 victims")
    assert cells[1] == ("x", "3.00", "2.00", "100 % at 1.5 µs", "50 % at 1.5 µs", "-10 % at 1.5 µs")


def test_figures_go_where_the_document_has_a_place_for_them() -> None:
    text = "a\n<!-- figures: x -->\nold\n<!-- /figures -->\nb\n<!-- figures: y -->\n<!-- /figures -->\n"
    assert replaced(text, "x", "new\\1") == text.replace("old", "new\\1")
    with pytest.raises(ValueError, match="0 places for the figures 'z'"):
        replaced(text, "z", "new")


def test_the_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    assert methods.main(["--quick", "--rounds", "1", "--only", "in-kernel", "--json", str(file)]) == 0
    assert "in-kernel policy" in capsys.readouterr().out
    assert file.stat().st_size > 500
    assert methods.main(["--only", "nothing"]) == 2
    with pytest.raises(SystemExit):
        methods.main(["--docs", "--quick"])
    assert "--docs: needs all methods at full length" in capsys.readouterr().err


def test_the_document_shows_what_comes_out() -> None:
    """One line of each table; all of them are made together."""
    text = DOCUMENT.read_text("utf-8")
    (entry,) = (entry for entry in ENTRIES if entry.way == "hints")
    runs = methods.compare([entry], Setup(), methods.SEEDS)
    assert run_ways(["upcall"], Setup())["upcall"].report in text
    for cells in (traffic_table(runs), main_table(runs), hang_table(methods.hang([entry], Setup()))):
        for line in as_markdown(cells).splitlines():
            assert line in text
