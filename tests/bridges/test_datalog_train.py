"""Agents that learn from a log, and start warm with what they have learned."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.bridges.datalog.train import Part, Training, save, train
from uxk.cli import main
from uxk.core.checkpoint import pack, unpack
from uxk.core.trained import from_file, to_file
from uxk.errors import ProbeError, UsageError

AGENT = """
import pickle
import uxk


class Advisor(uxk.MLAgent):
    manifest = uxk.Manifest(name="advisor", version="1", author="a", license="MIT", description="d", kind="ml-agent")
    model = "m0"
    sites = ("m0.site",)
    checkpoint_every = 0

    def setup(self, ctx):
        self.online, self.seen = uxk.online("linear_model.LinearRegression"), []

    def on_dataset(self, ctx, dataset):
        self.online.learn_many(dataset.rows, "y")
        self.seen.append((dataset.name, ctx.now_ns))
        ctx.set_attribute("learned", self.online.learned)
        if BOMB in dataset.rows["x"].tolist():
            raise RuntimeError("boom")

    def recommend(self, ctx, site):
        return b"x"

    def checkpoint(self):
        return pickle.dumps((self.online, self.seen))

    def restore(self, data):
        self.online, self.seen = pickle.loads(data)


BOMB = 1000
"""
ORIGIN = {"rows": 1, "log": "x"}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    path = tmp_path / "advisor.py"
    path.write_text(AGENT)
    return str(path)


@pytest.fixture
async def log(tmp_path: Path) -> uxk.DataLog:
    """Two runs of two datasets: 20 publications of 4 rows, in the second run 10."""
    for seed, count in ((1, 20), (2, 10)):
        await publish(tmp_path / "log", seed, count)
    return uxk.DataLog(tmp_path / "log")


async def publish(folder: Path, seed: int, count: int, first: int = 0) -> None:
    kernel = uxk.Kernel(seed=seed)
    with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(folder))):
        async with kernel:
            proxy = kernel.create_model("demo", "m0")
            data = [proxy.dataset(name, [("x", "<i4"), ("y", "<i8")], 4) for name in ("a", "b")]
            for each in range(first, first + count):
                data[each % 2].append([(each + i, 3 * (each + i) + 1) for i in range(4)])
                data[each % 2].publish()
                await kernel.sleep_ns(1000)


def learned(training: Training) -> tuple[int, list[tuple[str, int]]]:
    import pickle

    found = unpack(
        training.checkpoint, module="advisor", state_version=1,
        libraries=uxk.ml.versions_of(("python", "uxk", "numpy", "river")),  # type: ignore[attr-defined]
    )  # fmt: skip
    online, seen = pickle.loads(found)
    return online.learned, seen


async def test_an_agent_sees_every_publication_at_its_time(agent: str, log: uxk.DataLog) -> None:
    found = await train(agent, log, part=Part(run=1))
    assert (found.module, found.publications, found.rows, found.runs, found.skipped) == ("advisor", 20, 80, 1, 0)
    count, seen = learned(found)
    assert count == 80
    assert [name for name, _ in seen] == ["a", "b"] * 10
    assert [now_ns - seen[0][1] for _, now_ns in seen] == [1000 * each for each in range(20)]
    assert dict(found.attributes) == {"learned": "80"}
    assert found.origin["rows"] == 80
    assert (await train(agent, log, part=Part(run=1))).checkpoint == found.checkpoint


async def test_several_runs_come_one_after_the_other_and_a_part_is_their_beginning(
    agent: str, log: uxk.DataLog
) -> None:  # fmt: skip
    assert learned(await train(agent, log))[0] == 120
    assert learned(await train(agent, log, part=Part(train_ppm=500_000)))[0] == 4 * (10 + 5)
    assert learned(await train(agent, log, part=Part(run=2, until_ns=3000)))[0] == 16


async def test_a_process_of_its_own_learns_the_same(agent: str, log: uxk.DataLog) -> None:
    found = await train(agent, log, params={"placement": "process"}, part=Part(run=2))
    assert learned(found) == learned(await train(agent, log, part=Part(run=2)))


async def test_a_warm_start_goes_on_where_training_ended(agent: str, log: uxk.DataLog, tmp_path: Path) -> None:
    found = await train(agent, log)
    path = tmp_path / "advisor.ckpt"
    assert save(found, path) == path.stat().st_size
    for placement in ("task", "process"):
        async with uxk.Kernel() as kernel:
            proxy = kernel.create_model("demo", "m0")
            data = proxy.dataset("a", [("x", "<i4"), ("y", "<i8")], 4)
            await kernel.insmod(agent, warm=str(path), placement=placement)
            await kernel.run()
            data.append([(1, 4)])
            data.publish()
            await kernel.run()
            assert kernel.sysfs.read("/sys/module/advisor/attributes/learned") == "121"
    again = await train(agent, log, params={"warm": path}, part=Part(run=2))
    assert learned(again)[0] == 160


async def test_what_does_not_fit_is_refused_by_name(
    agent: str, log: uxk.DataLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "advisor.ckpt"
    save(await train(agent, log), path)

    async def refused(file: object, match: str) -> UsageError:
        async with uxk.Kernel() as kernel:
            with pytest.raises(UsageError, match=match) as caught:
                await kernel.insmod(agent, warm=file)
            assert "advisor" not in kernel.agents
        return caught.value

    with monkeypatch.context() as patch:
        patch.setattr("uxk.kernel.warm.versions_of", lambda names: dict.fromkeys(names, "9.9"))
        error = await refused(path, f"advisor: warm={path}: .*numpy .* expected 9.9; python .*river .*uxk ")
        assert error.errno == errno.EINVAL
    other = tmp_path / "other.ckpt"
    other.write_bytes(to_file(pack(b"", module="gc", state_version=3, libraries={}), ORIGIN))
    await refused(other, "module gc, expected advisor; state version 3, expected 1")
    other.write_bytes(path.read_bytes()[:-1])
    await refused(other, "a checkpoint of .* bytes, of which there are")
    assert (await refused(tmp_path / "none", "No such file")).errno == errno.ENOENT
    await refused("/dev/zero", "expected a regular file")
    await refused(7, "expected a file that uxk train has written")
    async with uxk.Kernel() as kernel:
        other.write_bytes(to_file(pack(b"rubbish", module="advisor", state_version=1, libraries={}), ORIGIN))
        with pytest.raises(ProbeError, match="UnpicklingError in restore"):
            await kernel.insmod(agent, warm=str(other))
        other.write_bytes(to_file(pack(b"", module="null", state_version=1, libraries={}), ORIGIN))
        with pytest.raises(UsageError, match="module null, expected echo"):
            await kernel.modprobe("echo", warm=str(other))


async def test_training_that_cannot_be(agent: str, log: uxk.DataLog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an MLAgent with a model"):
        await train("null", log)
    other = tmp_path / "other.py"
    other.write_text(AGENT.replace('model = "m0"', 'model = "m1"'))
    with pytest.raises(UsageError, match=r"no dataset of model 'm1' \(did you mean 'm0'\?\)") as caught:
        await train(str(other), log)
    assert caught.value.errno == errno.ENODATA
    other.write_text(AGENT.replace("def checkpoint", "def save"))
    with pytest.raises(UsageError, match="has no checkpoint") as caught:
        await train(str(other), log)
    assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(UsageError, match="train_ppm=0"):
        await train(agent, log, part=Part(train_ppm=0))
    await publish(tmp_path / "log", 3, 1, first=999)
    with pytest.raises(UsageError, match="died in training") as caught:
        await train(agent, log)
    assert caught.value.errno == errno.ECHILD


async def test_the_command(agent: str, log: uxk.DataLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import trio

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["train", agent, "--from", str(log.folder), "-o", str(tmp_path / "x.ckpt"), *words])
        return code, *capsys.readouterr()

    code, out, _ = await trio.to_thread.run_sync(run, "--run", "1")
    assert code == 0
    assert out.splitlines()[:2] == ["advisor: 20 publications, 80 rows of 1 run, 0 to 19000 ns", "  learned 80"]
    code, out, _ = await trio.to_thread.run_sync(run, "--json", "--share", "0.5", "-p", f"warm={tmp_path}/x.ckpt")
    assert json.loads(out)["attributes"] == {"learned": "140"}
    assert (await trio.to_thread.run_sync(run, "--share", "2"))[0] == 2


# --- the file ---


@given(st.binary(max_size=60), st.data())
def test_a_file_is_whole_or_refused(blob: bytes, data: st.DataObject) -> None:
    text = bytearray(to_file(blob, ORIGIN))
    found = from_file(bytes(text))
    assert (found.checkpoint, found.origin) == (blob, ORIGIN)
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UsageError):
        from_file(bytes(text))
    with pytest.raises(UsageError):
        from_file(bytes(text[:at]))


@given(st.binary(max_size=80))
def test_rubbish_is_no_checkpoint(rubbish: bytes) -> None:
    with pytest.raises(UsageError):
        from_file(rubbish)
    with pytest.raises(UsageError):
        from_file(to_file(b"", {})[:8] + rubbish)
