"""What is told of a study: the table, the sentences, the notes, the page; and all of it again from the folder."""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import uxk
from uxk.errors import ConfigError, UsageError
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.folder import write_study
from uxk.scenario.lfs.judge import notes
from uxk.scenario.lfs.memory import held_bytes
from uxk.scenario.lfs.outcome import Live
from uxk.scenario.lfs.report import add_report, page
from uxk.scenario.lfs.report.model import shown, standings
from uxk.scenario.lfs.report.stored import open_study
from uxk.scenario.lfs.report.svg import spread
from uxk.scenario.lfs.scores import oracle_of, wa_of
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.scenario.lfs.text import folded, missing, seeds_of, size
from uxk.scenario.lfs.verdict import Verdict
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.hint import GcHint, encode_hint

pytest.importorskip("numba")


class ReportAgent(uxk.MLAgent):
    """Recommends one policy, always."""

    manifest = uxk.Manifest(name="report-agent", license="MIT", kind="ml-agent")
    model = "lfs0"
    sites = ("lfs0.gc",)

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        return encode_hint(GcHint(policy="dac/cb-age"))


STUDY = Study(
    lfs=StudyParams(segment_blocks=16), workload=WorkloadSpec(name="zipf1.0", pages=1024, writes=5_000),
    policies=("default", "nosep/greedy", "report-agent", "fkg6"), seeds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return run_study(STUDY)


@pytest.fixture(scope="module")
def crowd() -> Verdict:
    return run_study(replace(STUDY, policies=("humans", "default", "fkg6"), seeds=1))


def without_host_time(text: str) -> str:
    return re.sub(r"(?m)^host time .*$", "", text)


def agent_alone(**settings: object) -> Study:
    return replace(STUDY, policies=("default", "report-agent"), seeds=1, lfs=replace(STUDY.lfs, **settings))


# --- text ---------------------------------------------------------------------------------------------------


def test_an_agent_costs_what_is_told(verdict: Verdict) -> None:
    text = verdict.report()
    assert "report-agent, seed 0: " in text
    assert re.search(r"  cost in each run: [\d,]+ crossings, [\d,]+ bytes, .+ of virtual time", text)
    assert re.search(
        r"(?m)^host time .* of CPU for report-agent in each run, [\d,]+ ns per user write; .*B of memory", text
    )
    for each in verdict.to_dict()["results"]:
        assert (each["thinking"]["held_bytes"] > 0) == (each["kind"] == "agent")


def test_an_agent_that_is_not_followed_has_the_latencies_of_the_default() -> None:
    default, agent = run_study(agent_alone(modes="emergency")).outcomes
    assert agent.latency == default.latency
    assert agent.latency is not None and agent.latency.stalls > 0
    assert (agent.moved_blocks, agent.half_moved_blocks) == (default.moved_blocks, default.half_moved_blocks)


def test_losses_are_told(verdict: Verdict) -> None:
    lines = verdict.report().splitlines()
    row = next(line for line in lines if line.startswith("  nosep/greedy"))
    assert row.count("+") == 2  # against the default, and against the best human
    assert any(line.startswith("winner: ") for line in lines)
    assert any(
        re.match(r"report-agent is .* the best of 2 published policies \(sepbit/cb-age\)", line) for line in lines
    )


def test_a_long_table_leaves_out_the_middle_of_the_field(crowd: Verdict) -> None:
    short, long = crowd.report(), crowd.report(everything=True)
    assert re.search(r"\.\.\. \d+ more published policies, WA \d\.\d+ to \d\.\d+", short)
    assert "more published policies" not in long
    told = [name for name in policies.HUMANS if re.search(rf"(?m)^[* ] {re.escape(name)} ", short)]
    assert len(told) < len(policies.HUMANS) == sum(f" {name} " in long for name in policies.HUMANS)
    for each in (crowd.summaries[1], crowd.summaries[-1]):
        assert f" {each.policy} " in short
    assert any("(default)" in line for line in short.splitlines())


def test_a_short_table_leaves_out_nothing(verdict: Verdict) -> None:
    assert not any(folded(verdict.summaries, verdict.winner))


def test_what_nobody_has_is_said_once() -> None:
    timed = replace(
        STUDY, lfs=StudyParams(segment_blocks=16, engine="timed"), policies=("default", "dac/greedy"), seeds=1
    )
    verdict = run_study(timed)
    assert {whose for _, whose, _ in missing(verdict.outcomes)} == {"all policies"}
    assert "by watermarks" in verdict.report()


def test_words_for_seeds_and_sizes() -> None:
    assert [seeds_of(seeds) for seeds in ([3], [0, 1, 2], [0, 2])] == ["seed 3", "seeds 0 to 2", "seeds 0, 2"]
    assert [size(count) for count in (0, 999, 1_500, 7_070_000, 3 * 10**12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "7.07 MB",
        "3e+03 GB",
    ]


def test_gaps_are_measured_to_the_oracle_of_the_name(crowd: Verdict) -> None:
    more = run_study(replace(STUDY, policies=("default", "fk/cb-age", "fkg6/mdc", "fkg6"), seeds=1))
    bound = oracle_of(more.outcomes)
    assert bound is not None and bound.policy == "fkg6"
    others = [each for each in more.outcomes if each.policy != "fkg6"]
    best = oracle_of(others)
    assert best is not None and wa_of(best) == min(wa_of(each) for each in others if each.kind == "oracle")
    assert oracle_of(each for each in crowd.outcomes if each.kind == "human") is None


def test_progress_of_several_processes_is_by_runs() -> None:
    seen: list[Live] = []
    study = replace(STUDY, policies=("default", "nosep/greedy"), seeds=1)
    alone = run_study(study)
    shared = run_study(study, jobs=2, on_live=seen.append)
    assert [(live.number, live.done, live.total) for live in seen] == [(1, 1, 2), (2, 2, 2)]
    assert [each.event_hash for each in shared.outcomes] == [each.event_hash for each in alone.outcomes]


def test_memory_is_that_of_what_can_be_reached() -> None:
    class Holder:
        def __init__(self) -> None:
            self.all = np.zeros(1_000_000, np.uint8)
            self.part = self.all[10:20]
            self.me = self

    held = held_bytes(Holder())
    assert 1_000_000 < held < 1_010_000  # the array once, and no code


# --- notes --------------------------------------------------------------------------------------------------


def test_a_trace_is_told_with_what_was_wrong_in_it(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = [f"{i * 10**7},srv,{i % 2},{'Read' if i % 5 == 0 else 'Write'},{i % 64 * 4096},4096,0" for i in range(400)]
    lines[9], lines[19] = "garbage", lines[19].replace("Write", "Wrote")
    path.write_text("\n".join(lines))
    study = replace(STUDY, workload=WorkloadSpec(trace=str(path)), policies=("default",), seeds=1)
    verdict = run_study(study)
    told = "\n".join(notes(verdict))
    assert "trace: format msr, 400 lines, 318 write requests; left out: 80 reads" in told
    assert re.search(r"2 malformed lines left out: line 10: .*; line 20: ", told)
    assert "2 devices side by side in one volume (srv_0, srv_1): -o lfs.device=NAME takes one" in told
    trace = verdict.to_dict()["trace"]
    assert [line for line, _ in trace["malformed_lines"]] == [10, 20]
    assert (trace["malformed"], trace["devices"]) == (2, 2)
    write_study(tmp_path / "out", verdict, "")
    assert open_study(tmp_path / "out")[1].trace == verdict.trace


def test_too_little_overwriting_is_told() -> None:
    verdict = run_study(replace(STUDY, workload=replace(STUDY.workload, writes=16), policies=("default",), seeds=1))
    told = "\n".join(notes(verdict))
    assert "written 1 times on average" in told
    assert "nobody had to move a single block" in told


def test_one_seed_is_called_one_seed(verdict: Verdict, crowd: Verdict) -> None:
    assert any(note.startswith("one seed") for note in notes(crowd))
    assert not any(note.startswith("one seed") for note in notes(verdict))


# --- the folder and its page --------------------------------------------------------------------------------


def test_the_verdict_is_read_back(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    stored, again = open_study(tmp_path)
    assert without_host_time(again.report()) == without_host_time(verdict.report())
    assert again.to_dict() == verdict.to_dict() == stored.results


def test_metrics_have_a_line_for_each_run(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["policy"], int(row["seed"])) for row in rows] == [
        (each.policy, each.seed) for each in verdict.outcomes
    ]
    for row, outcome in zip(rows, verdict.outcomes, strict=True):
        assert float(row["wa"]) == outcome.wa_ppm / 1e6
        assert int(row["write_latency.p99_ns"]) > 0
        assert float(row["scores.vs_default"]) > 0
    assert not any(name.startswith(("mode_timeline", "segments_by_tenths")) for name in rows[0])


@pytest.fixture(scope="module")
def html(verdict: Verdict, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_study(folder, verdict, "")
    assert add_report(folder) == ""
    return (folder / "report.html").read_text("utf-8")


def test_the_page_is_one_file_with_all_plots(html: str) -> None:
    assert html.count("<svg ") == 5
    for title in ("over time", "Mode timeline", "Segment utilisation", "Victim age", "Hint fates", "Thinking"):
        assert title in html
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)|<script""", html)
    assert "★ winner" in html and 'class="bad"' in html
    for name in ("learning", "dac/cb-age", "nosep/greedy", "kernel: booted"):
        assert name in html


def test_the_page_is_the_same_every_time(html: str, verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    add_report(tmp_path, tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text("utf-8") == html


def test_colours_come_from_the_page(html: str) -> None:
    drawings = "".join(re.findall(r"<svg .*?</svg>", html, re.DOTALL))
    assert "var(--s0)" in drawings and "var(--ink)" in drawings
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)
    assert "prefers-color-scheme: dark" in html


def test_the_page_of_a_crowd_folds_the_table(crowd: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, crowd, "")
    add_report(tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert re.search(r"<details><summary>\d+ more published policies, places \d+ to \d+</summary>", text)
    assert all(f"{name}" in text for name in policies.HUMANS)
    assert "no agent took part" in text
    rows = standings(crowd.outcomes)
    assert {row.policy for row in shown(rows)} >= {"fkg6", "sepbit/cb-age", rows[1].policy}


def test_names_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "<b>$x$ & co.py"
    path.write_text("from uxk.subsystems.lfs.policies import Greedy\n\nclass Mine(Greedy):\n    name = 'mine'\n")
    verdict = run_study(replace(STUDY, policies=("default", str(path)), seeds=1))
    write_study(tmp_path / "out", verdict, "")
    add_report(tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text("utf-8")
    assert "<b>" not in text
    assert "&lt;b&gt;$x$ &amp; co.py" in text


def test_without_the_extra_the_page_is_missed_and_no_more(
    verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path, verdict, "")
    monkeypatch.setattr(page, "available", lambda: False)
    assert "uxk[report]" in add_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_named(verdict: Verdict, tmp_path: Path) -> None:
    write_study(tmp_path, verdict, "")
    with pytest.raises(UsageError, match="nowhere"):
        add_report(tmp_path, tmp_path / "nowhere/report.html")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"moved_blocks"', '"moved"', "result of sepbit/cb-age, seed 0: .*moved_blocks"),
        ('"user_blocks": 6024', '"user_blocks": -1', "cannot be"),
        ('"notes": []', '"notes": 3', "notes"),
    ],
)
def test_damaged_results_are_named(verdict: Verdict, tmp_path: Path, old: str, new: str, complaint: str) -> None:
    write_study(tmp_path, verdict, "")
    path = tmp_path / "results.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=complaint):
        open_study(tmp_path)


def test_labels_are_spread_and_keep_their_order() -> None:
    assert spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    places = spread([1.0, 1.0, 1.1, 3.0], 0.5)
    assert places == sorted(places)
    assert all(after - before >= 0.5 - 1e-9 for before, after in pairwise(places))
