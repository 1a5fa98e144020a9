"""A log of one run teaches an agent in another."""

from __future__ import annotations

from pathlib import Path

import pytest

import uxk
from uxk.bridges.logs import replay
from uxk.bridges.logs.lines import to_json_line
from uxk.bridges.logs.replay import LogReplay, replay_log
from uxk.errors import UsageError
from uxk.uapi.info import Record

MS = 1_000_000


def line(seq: int, time_ns: int, text: str = "line", **fields: int | str) -> str:
    return to_json_line(Record(seq, time_ns, 4, 0, "disk", text, fields))


class Counter(uxk.MLAgent):
    """Counts the lines that it is shown."""

    manifest = uxk.Manifest(name="counter", version="1.0", license="Apache-2.0")
    model = "kmsg"

    def setup(self, ctx: uxk.Context) -> None:
        self.lines: list[tuple[int, int, bytes]] = []

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        for row in dataset.rows:
            self.lines.append((ctx.now_ns, int(row["seq"]), bytes(row["text"])))
        ctx.set_attribute("lines", len(self.lines))
        ctx.set_attribute("last", f"{self.lines[-1][0]} {self.lines[-1][2].decode()}")


async def replayed(path: Path, **params: object) -> tuple[LogReplay, uxk.Kernel]:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Counter)
        found = replay_log(kernel, path, **params)
        await kernel.run()
        attributes = {
            name: kernel.sysfs.read(f"/sys/module/counter/attributes/{name}")
            for name in (kernel.sysfs.listdir("/sys/module/counter/attributes") if found.rows else ())
        }
        found.seen = attributes  # type: ignore[attr-defined]
        found.end_ns = kernel.now_ns  # type: ignore[attr-defined]
    return found, kernel


async def test_an_agent_sees_the_lines_in_their_rhythm(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join([line(0, 5 * MS), line(1, 5 * MS + 10), line(2, 9 * MS, "last")]))
    found, _ = await replayed(path)
    assert found.results() == {"rows": 3, "batches": 2, "boots": 1, "lines_bad": 0, "done": 1, "problem": ""}
    assert found.seen == {"lines": "3", "last": f"{5 * MS} last"}  # type: ignore[attr-defined]


async def test_bursts_come_in_several_publications(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(line(seq, 0) for seq in range(100)))
    found, _ = await replayed(path, rows_max=30)
    assert (found.rows, found.batches) == (100, 4)


async def test_another_boot_follows_behind(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join([line(0, 0), line(1, 4 * MS), line(0, 7 * MS), line(1, 8 * MS)]))
    found, _ = await replayed(path)
    assert found.boots == 2 and found.rows == 4
    assert found.end_ns == 5 * MS  # type: ignore[attr-defined]


async def test_bad_lines_are_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(["garbage"] * 20 + [line(0, 0)]))
    found, kernel = await replayed(path)
    assert found.lines_bad == 20 and found.rows == 1
    told = kernel.kmsg.records(source="log")
    assert len(told) == replay.ERRORS_TOLD and told[0].fields == {"line": 1}
    monkeypatch.setattr(replay, "ERRORS_MAX", 10)
    with pytest.raises(UsageError, match="more than 10 lines are no records"):
        await replayed(path)


async def test_times_that_no_run_can_have_end_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(line(0, time) for time in (0, 1 << 62, 0, 1 << 62, 0, 1 << 62)))
    found, _ = await replayed(path)
    assert found.problem == "" or "beyond" in found.problem


async def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(line(0, 0, "x" * 1000, a="y" * 200, b="z" * 200))
    async with uxk.Kernel() as kernel:
        found = replay_log(kernel, path)
        await kernel.run()
        row = found.dataset.published[0]
        assert (row["text_bytes"], len(row["text"])) == (1000, 240)
        assert bytes(row["fields"]) == b'{"a":"' + b"y" * 200 + b'"}'


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(UsageError, match="No such file"):
            replay_log(kernel, tmp_path / "none")


def test_a_scenario_replays_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(line(seq, seq * MS) for seq in range(10)))
    scenario = uxk.Scenario(name="s", subsystems={"log": {"file": str(tmp_path / "log"), "every_ns": "2ms"}})
    hashes = set()
    for _ in range(2):
        result = uxk.run(scenario)
        assert result.ok and result["subsystems.log.rows"] == 10
        hashes.add(result.event_hash)
    assert len(hashes) == 1
