"""Model proxies from both sides: a subsystem in the kernel, and an agent that knows its messages only (R35-R47)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import trio

import uxk
from uxk.core.mode import ModeConfig
from uxk.core.site import DecisionSite
from uxk.errors import TreeError, UsageError
from uxk.kernel.models import ATTACHED_MAX
from uxk.kernel.proxy import MLModelProxy
from uxk.limits import CAPS_PER_HOLDER_MAX
from uxk.testing.kernels import crash, residue, usage
from uxk.uapi import ml
from uxk.uapi.entries import Hint
from uxk.uapi.ml import DatasetState, Mode, ModelCommand, ModelState
from uxk.uapi.rights import Rights

WRITES = np.dtype([("lba", "<u4"), ("kind", "u1"), ("ages", "<u2", (3,))])
PATH = "/sys/kernel/ml/lfs/lfs0"


class Learner(uxk.Extension):
    """Hears everything of lfs0, and lets the test speak for it."""

    manifest = uxk.Manifest(
        name="learner", kind="ml-agent", restart=uxk.RestartPolicy(mode="temporary"),
        capabilities=("model:lfs*:read,write", "site:lfs0.*"),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]
    heard: ClassVar[list[uxk.Event]]
    rows: ClassVar[list[Any]]

    def setup(self, ctx: uxk.Context) -> None:
        type(self).ctx, type(self).heard, type(self).rows = ctx, [], []
        ctx.attach("lfs0")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        self.heard.append(event)
        if event.topic == "dataset":
            self.rows.append(read(ctx, ml.decode_dataset(event.value), event.cap))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


class Stranger(Learner):
    """Asks for nothing."""

    manifest = uxk.Manifest(name="stranger", kind="ml-agent", capabilities=("model:lfs0",))


def read(ctx: uxk.Context, dataset: ml.Dataset, cap: int) -> list[Any]:
    """The rows of a portion, or the error's name."""
    dtype = np.dtype([tuple(column) for column in dataset.schema])
    try:
        view = ctx.map(cap)
    except uxk.CapabilityError as exc:
        return [exc.errno_name]
    rows = np.frombuffer(view, dtype, dataset.portion_size // dtype.itemsize, dataset.portion_offset)
    return [tuple(row.tolist()) if np.ndim(row) == 0 else row for row in rows.copy()]


def heard(topic: str, cls: type[Learner] = Learner) -> list[uxk.Event]:
    return [event for event in cls.heard if event.topic == topic]


async def ask(kernel: uxk.Kernel, reply: uxk.Reply) -> uxk.Completion:
    await kernel.sleep_ns(0)
    assert reply.completion is not None
    return reply.completion


def fine(payload: bytes) -> str:
    return "out_of_range" if payload == b"far" else ""


def rows(*numbers: int) -> list[tuple[Any, ...]]:
    return [(number, number % 2, (number, 0, 0)) for number in numbers]


# --- the eighteen operations ---


async def test_all_operations_work_in_their_order() -> None:
    done: list[str] = []
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model(
            "lfs", "lfs0", start=False, correct=done.append, state=lambda: {"clean": 9},
            probe=lambda: {"clean_segments": "2 left" if "low" in done else None},
        )  # fmt: skip
        assert (proxy.mode, proxy.state) == (Mode.EMERGENCY, ModelState.INITIALIZED)
        proxy.re_init(ModeConfig(calm_epochs=2, learning_share_ppm=1_000_000))
        proxy.start()
        data = proxy.dataset("writes", WRITES, 8, preprocess=lambda rows: rows[rows["kind"] == 1])
        site = proxy.site("lfs0.gc", fine)
        module = await kernel.insmod(Learner)
        data.append(rows(1, 2, 3))
        assert proxy.preprocess_data("writes") == 2
        assert proxy.publish_data("writes") == 1
        await kernel.run()
        assert [row[0] for row in Learner.rows[0]] == [1, 3]
        assert proxy.state is ModelState.RUNNING
        agent = kernel.agents[module.name]
        dataset, cap = proxy.get_dataset(agent, "writes", 0, WRITES.itemsize)
        assert (dataset.portion_size, dataset.rows, cap) == (WRITES.itemsize, 2, heard("dataset")[0].cap)
        hint = Hint(5, "lfs0.gc", 0, 100, b"x", dataset.id, 1, 70)
        assert proxy.preprocess_recommendation(agent, hint) == ""
        assert proxy.execute_operation("lfs0.gc", lambda: b"default", lambda found: found.payload) == b"x"
        assert proxy.execute_operation("lfs0.gc", lambda: b"default", lambda found: found.payload) == b"default"
        proxy.error_backpropagation(hint, 60, 90)
        await kernel.run()
        (event,) = heard("feedback")
        assert ml.decode_feedback(event.value) == [ml.Feedback(5, "lfs0.gc", 70, 60, 90, "", dataset.id, 1)]
        assert site.epoch(default_kpi=100, hinted_kpi=90, weight=10) is Mode.LEARNING
        assert proxy.efficiency_ppm == 100_000
        proxy.discard_dataset("writes")
        assert data.state is DatasetState.OBSOLETE
        done.append("low")
        assert proxy.estimate_system_state() == {"clean_segments": "2 left"}
        assert proxy.mode is Mode.EMERGENCY and done[-1] == "watermark clean_segments: 2 left"
        assert proxy.get_system_state()["critical"] == "clean_segments" and proxy.get_system_state()["clean"] == 9
        assert proxy.apply_recommendation("lfs0.gc") is None
        proxy.correct_system_state("by hand")
        assert done[-1] == "by hand"
        with pytest.raises(UsageError, match="destroy in state RUNNING: stop it first"):
            proxy.destroy()
        proxy.stop()
        proxy.destroy()
        assert (proxy.mode, proxy.state) == (Mode.UNKNOWN, ModelState.DEAD)


async def test_several_models_of_a_subsystem_and_their_end_leaves_nothing() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        before = usage(kernel)
        first, second = kernel.create_model("lfs", "lfs0"), kernel.create_model("lfs", "lfs1")
        await kernel.insmod(Learner)
        for proxy in (first, second):
            proxy.dataset("writes", WRITES, 1000).publish()
            proxy.site(f"{proxy.name}.gc", fine)
        await kernel.run()
        assert (await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 1000, b"x", standing=True))).status == 0
        assert residue(kernel, before)["hints"] == 1
        with pytest.raises(UsageError, match="'lfs0' exists already"):
            kernel.create_model("lfs", "lfs0")
        with pytest.raises(UsageError, match=r"site 'lfs0\.gc' exists already"):
            second.site("lfs0.gc", fine)
        for proxy in (first, second):
            proxy.close()
            proxy.close()
        await kernel.run()
        assert [event.name for event in heard("model_gone")] == ["lfs0"]
        await kernel.rmmod("learner")
        assert residue(kernel, before) == {}


# --- attaching ---


@pytest.mark.parametrize("first", ["agent", "model"])
async def test_an_agent_is_told_of_its_model_whoever_comes_first(first: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        if first == "agent":
            await kernel.insmod(Learner)
            await kernel.run()
            assert Learner.heard == []
        proxy = kernel.create_model("lfs", "lfs0")
        proxy.dataset("writes", WRITES, 10)
        site = proxy.site("lfs0.gc", fine)
        if first == "model":
            await kernel.insmod(Learner)
        await kernel.run()
        info = ml.decode_model(heard("model")[-1].value)
        assert (info.model_name, info.sites, info.generations, info.mode) == ("lfs0", ("lfs0.gc",), (0,), Mode.LEARNING)
        assert [column[0] for column in info.datasets[0].schema] == ["lba", "kind", "ages"]
        site.advance()
        site.advance()
        await kernel.run()
        assert [(e.name, ml.decode_generation(e.value)) for e in heard("generation")] == [("lfs0.gc", 2)]
        assert (await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.DETACH))).status == 0
        site.advance()
        await kernel.run()
        assert len(heard("generation")) == 1


async def test_what_the_manifest_does_not_ask_for_is_refused() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site = proxy.site("lfs0.gc", fine)
        await kernel.insmod(Stranger)
        ctx = Stranger.ctx
        assert (await ask(kernel, ctx.hint("lfs0.gc", 0, 100, b"x"))).status == errno.EACCES
        assert (site.rejects, site.hints_received, proxy.rejects) == ({"forged": 1}, 0, {"forged": 1})
        assert (await ask(kernel, ctx.model("lfs0", ModelCommand.STOP))).status == errno.EACCES
        assert (await ask(kernel, ctx.attach("lfs1"))).status == errno.EACCES
        assert (await ask(kernel, ctx.model("lfs0", ModelCommand.NOP))).status == 0
        odd = await ask(kernel, ctx.model("lfs0", 99))
        assert (odd.status, b"known: NOP 0" in odd.payload) == (errno.EINVAL, True)


async def test_waiting_for_models_is_bounded() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Learner)
        statuses = [
            (await ask(kernel, Learner.ctx.attach(f"lfs_{number}"))).status for number in range(ATTACHED_MAX + 1)
        ]
        assert statuses[-2:] == [errno.EMFILE] * 2 and not any(statuses[:-2])


async def test_revoking_the_right_ends_what_it_allowed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        site, data = proxy.site("lfs0.gc", fine), proxy.dataset("writes", WRITES, 4)
        module = await kernel.insmod(Learner)
        data.publish()
        assert (await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 100, b"x", standing=True))).status == 0
        cap = heard("dataset")[0].cap
        for each in kernel.machine.caps.held(kernel.agents[module.name].id):
            if each.kind in ("model", "site"):
                kernel.machine.caps.revoke(each.id)
        assert site.standing(0) is None and not proxy.agents
        with pytest.raises(uxk.CapabilityError):
            Learner.ctx.map(cap)


# --- datasets ---


async def test_push_and_pull_in_portions() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 4)
        await kernel.insmod(Learner)
        assert data.append(rows(1, 2, 3)) == 3 and data.append(rows(4, 5)) == 1
        assert (data.rows, data.room, data.lost) == (4, 0, 1)
        assert data.publish() == 1
        await kernel.run()
        assert [row[0] for row in Learner.rows[0]] == [1, 2, 3, 4]
        assert data.state is DatasetState.EXTRACTED_COMPLETELY
        assert ml.decode_dataset(heard("dataset")[0].value).lost == 1
        data.append(np.array(rows(7, 8, 9), WRITES))
        data.prepare()
        assert data.state is DatasetState.CLEAN and data.published["lba"].tolist() == [7, 8, 9]
        size = WRITES.itemsize
        seen = []
        for offset, state in (
            (0, "EXTRACTED_PARTIALLY"),
            (size, "EXTRACTED_PARTIALLY"),
            (2 * size, "EXTRACTED_COMPLETELY"),
        ):
            done = await ask(kernel, Learner.ctx.model(
                "lfs0", ModelCommand.GET_DATASET, "writes", offset=offset, size=size
            ))  # fmt: skip
            portion = ml.decode_dataset(done.payload)
            assert (portion.state.name, portion.generation) == (state, 2)
            seen += [row[0] for row in read(Learner.ctx, portion, done.result)]
        assert seen == [7, 8, 9]
        gap = await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.GET_DATASET, "writes", offset=4 * size))
        assert gap.status == errno.EINVAL
        none = await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.GET_DATASET, "write"))
        assert (none.status, b"did you mean" in none.payload) == (errno.ENOENT, True)


async def test_a_slow_reader_loses_its_view_and_nobody_waits() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        data = kernel.create_model("lfs", "lfs0").dataset("writes", WRITES, 4)
        await kernel.insmod(Learner)
        for number in range(3):
            data.append(rows(number))
            data.publish()
        await kernel.run()
        assert [[row if row == "ESTALE" else row[0] for row in found] for found in Learner.rows] == [
            ["ESTALE"], ["ESTALE"], [2]
        ]  # fmt: skip


async def test_rows_are_filled_in_place() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        data = kernel.create_model("lfs", "lfs0").dataset("writes", WRITES, 4)
        data.append(rows(1))
        data.tail["lba"][:2] = (5, 6)
        data.commit(2)
        data.prepare()
        assert data.published["lba"].tolist() == [1, 5, 6]
        with pytest.raises(UsageError, match="commit of 5 rows, there is room for 4"):
            data.commit(5)
        with pytest.raises(ValueError, match="read-only"):
            data.published["lba"][0] = 1


async def test_what_preprocessing_leaves_out_is_in_no_readers_memory() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 8, preprocess=lambda rows: rows[rows["kind"] == 1])
        await kernel.insmod(Learner)
        data.append(rows(1, 2, 3, 6, 8, 4))
        data.publish()
        await kernel.run()
        slot = np.frombuffer(Learner.ctx.map(heard("dataset")[0].cap), WRITES)
        assert slot["lba"].tolist() == [1, 3, 0, 0, 0, 0, 0, 0]


async def test_no_row_is_preprocessed_twice_and_what_does_not_fit_is_lost() -> None:
    def double(rows: Any) -> Any:
        rows = rows.copy()
        rows["lba"] *= 2
        return rows

    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 4, preprocess=double)
        data.append(rows(1, 2))
        assert proxy.preprocess_data("writes") == proxy.preprocess_data("writes") == 2
        data.append(rows(5))
        proxy.publish_data("writes")
        assert data.published["lba"].tolist() == [2, 4, 10]
        data = proxy.dataset("more", WRITES, 4, preprocess=lambda rows: np.repeat(rows, 3))
        data.append(rows(1, 2))
        data.publish()
        assert (data.published["lba"].tolist(), data.lost_before) == ([1, 1, 1, 2], 2)


@pytest.mark.parametrize("bad", [
    np.array([(1, (0, 0, 0), 1)], [("lba", "<u4"), ("ages", "<u2", (3,)), ("kind", "u1")]), np.arange(3),
    np.zeros((2, 2), WRITES), np.zeros(1, [("lba", "<i8"), ("kind", "u1"), ("ages", "<u2", (3,))]),
    [(1 << 40, 0, (0, 0, 0))], [(-1, 0, (0, 0, 0))], [(1,)], [(None, 0, (0, 0, 0))], [(float("nan"), 0, (0, 0, 0))],
])  # fmt: skip
async def test_rows_of_another_kind_are_refused_and_none_is_taken(bad: Any) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        data = kernel.create_model("lfs", "lfs0").dataset("writes", WRITES, 4)
        with pytest.raises(UsageError, match=r"dataset writes: .*expected rows of"):
            data.append(bad)
        assert (data.rows, data.lost, data.append(rows(3))) == (0, 0, 1)


async def test_a_dataset_whose_model_is_gone_says_so() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 4)
        proxy.close()
        for call in (lambda: data.append(rows(1)), data.publish, lambda: data.tail, data.discard, data.extract):
            with pytest.raises(UsageError):
                call()
        assert (data.state, len(data.published)) == (DatasetState.UNKNOWN, 0)


async def test_a_reader_without_room_for_a_capability_does_not_stop_the_subsystem() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        data = kernel.create_model("lfs", "lfs0").dataset("writes", WRITES, 4)
        agent = kernel.agents[(await kernel.insmod(Learner)).name]
        caps = kernel.machine.caps
        while caps.count(agent.id) < CAPS_PER_HOLDER_MAX:
            caps.grant(agent.id, "lock", "greed", Rights.READ)
        data.append(rows(1))
        assert data.publish() == 1
        assert (data.state, agent.account.rejects["event_dropped"]) == (DatasetState.CLEAN, 1)
        done = await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.GET_DATASET, "writes"))
        assert (done.status, data.state) == (errno.EMFILE, DatasetState.CLEAN)


async def test_extraction_on_request_and_its_failure() -> None:
    state = {"fail": True}

    def extract(data: Any) -> None:
        data.append(rows(41, 42))
        if state["fail"]:
            raise ValueError("no such thing")

    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 4, extract=extract)
        await kernel.insmod(Learner)
        get = lambda: Learner.ctx.model("lfs0", ModelCommand.GET_DATASET, "writes")  # noqa: E731
        failed = await ask(kernel, get())
        assert (failed.status, data.state, data.rows) == (errno.EIO, DatasetState.EXTRACTION_FAILURE, 0)
        state["fail"] = False
        assert ml.decode_dataset((await ask(kernel, get())).payload).rows == 2
        assert ml.decode_dataset((await ask(kernel, get())).payload).generation == 1, "it is fresh"
        kernel.sysfs.write(f"{PATH}/control", "discard_dataset")
        assert data.state is DatasetState.OBSOLETE
        assert ml.decode_dataset((await ask(kernel, get())).payload).generation == 2
        assert (await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.PREPARE_DATASET))).status == 0
        assert [row[0] for row in Learner.rows[-1]] == [41, 42]


async def test_a_checked_dataset_tells_when_its_bytes_have_changed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        data = kernel.create_model("lfs", "lfs0").dataset("writes", WRITES, 4, checked=True)
        await kernel.insmod(Learner)
        data.append(rows(1, 2))
        data.prepare()
        data._views[1]["lba"][0] = 9
        done = await ask(kernel, Learner.ctx.model("lfs0", ModelCommand.GET_DATASET, "writes"))
        assert (done.status, data.state) == (errno.EIO, DatasetState.CORRUPTED)
        assert kernel.sysfs.read(f"{PATH}/datasets/writes/state") == "corrupted"


@pytest.mark.parametrize(
    "dtype",
    ["<u4", [("x", "<f8")], [("x", "O")], [], [("x", "S0")], np.dtype([("a", "u1"), ("b", "<u4")], align=True)],
)
async def test_a_dataset_takes_packed_integers_only(dtype: Any) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        before = usage(kernel)
        proxy = kernel.create_model("lfs", "lfs0")
        with pytest.raises(UsageError, match="expected"):
            proxy.dataset("writes", dtype, 4)
        with pytest.raises(uxk.BudgetError):
            proxy.dataset("huge", WRITES, 1 << 40)
        for capacity, slots in ((0, 2), (1, 1)):
            with pytest.raises(UsageError, match="expected at least"):
                proxy.dataset("bad", WRITES, capacity, slots=slots)
        proxy.close()
        assert residue(kernel, before) == {}


# --- hints ---


async def test_hints_are_judged_by_where_they_come_from() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        data = proxy.dataset("writes", WRITES, 4)
        site = proxy.site("lfs0.gc", fine, lag_max=1)
        await kernel.insmod(Learner)
        for _ in range(3):
            data.publish()

        async def hint(dataset: int, generation: int, payload: bytes = b"x") -> bytes:
            sent = Learner.ctx.hint("lfs0.gc", 0, 100, payload, dataset, dataset_generation=generation)
            return (await ask(kernel, sent)).payload

        assert [await hint(*each) for each in ((0, 0), (data.id, 3), (data.id, 2), (data.id, 1))] == [
            b"", b"", b"", b"stale_dataset"
        ]  # fmt: skip
        assert [await hint(*each) for each in ((data.id, 4), (99, 0), (0, 1))] == [b"forged"] * 3
        assert await hint(0, 0, b"far") == b"out_of_range"
        assert kernel.sysfs.read(f"{PATH}/rejects/forged") == "3"
        assert kernel.sysfs.read(f"{PATH}/sites/lfs0.gc/rejects") == "forged 3\nout_of_range 1\nstale_dataset 1"
        assert (site.superseded, proxy.total("hints_received")) == (2, 8)


async def test_feedback_comes_in_batches() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        site = kernel.create_model("lfs", "lfs0").site("lfs0.gc", fine)
        await kernel.insmod(Learner)
        sent = Learner.ctx.hint("lfs0.gc", 0, 100, b"x", standing=True, predicted=5)
        await ask(kernel, sent)
        for number in range(300):
            found = site.standing(0)
            assert found is not None
            site.applied(found, outcome=number)
        await kernel.run()
        batches = [ml.decode_feedback(event.value) for event in heard("feedback")]
        assert [len(batch) for batch in batches] == [128, 128, 44]
        assert [record.outcome for batch in batches for record in batch] == list(range(300))
        assert {record.hint for batch in batches for record in batch} == {sent.cid}


@pytest.mark.parametrize("end", ["crash", "rmmod"])
async def test_when_the_agent_dies_its_hints_vanish_and_defaults_decide(end: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0", config=ModeConfig(calm_epochs=1))
        site = proxy.site("lfs0.gc", fine)
        await kernel.insmod(Learner)
        await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 10**9, b"x", standing=True))
        assert site.standing(kernel.now_ns) is not None and proxy.mode is Mode.LEARNING
        if end == "crash":
            crash(kernel, "learner")
        else:
            await kernel.rmmod("learner")
        assert site.standing(kernel.now_ns) is None
        assert (proxy.mode, proxy.timeline[-1].why) == (Mode.EMERGENCY, "watermark agent_dead: learner")
        for _ in range(5):
            site.epoch(default_kpi=100, hinted_kpi=None)
        assert proxy.mode is Mode.EMERGENCY, "nobody is there"
        if end == "crash":
            await kernel.rmmod("learner") if "learner" in kernel.agents else None
        await kernel.insmod(Learner)
        await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 10**9, b"y", standing=True))
        assert site.epoch(default_kpi=100, hinted_kpi=None) is Mode.LEARNING


async def test_a_silent_agent_and_one_that_sends_rubbish_are_emergencies() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        config = ModeConfig(silence_ns=1000, calm_epochs=1, rejects_min=4)
        proxy = kernel.create_model("lfs", "lfs0", config=config)
        site = proxy.site("lfs0.gc", fine)
        await kernel.insmod(Learner)
        await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 10**9, b"x"))
        epoch: Callable[[], Mode] = lambda: site.epoch(default_kpi=100, hinted_kpi=None)  # noqa: E731
        await kernel.sleep_ns(1000)
        assert epoch() is Mode.LEARNING
        await kernel.sleep_ns(1)
        assert epoch() is Mode.EMERGENCY and "agent_silent: 1001 ns" in proxy.timeline[-1].why
        for _ in range(4):
            await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 10**9, b"far"))
        await ask(kernel, Learner.ctx.hint("lfs0.gc", 0, 10**9, b"x"))
        proxy.modes.set_override(0, Mode.LEARNING)
        proxy.modes.override = None
        assert epoch() is Mode.EMERGENCY
        assert proxy.timeline[-1].why == "watermark rejects: 4 of 5 hints refused"
        assert [epoch(), epoch()][-1] is Mode.LEARNING


async def test_a_site_without_a_model_works_as_before() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        kernel.machine.sites["lfs0.bare"] = site = DecisionSite("lfs0.bare", fine)
        await kernel.insmod(Learner)
        assert (await ask(kernel, Learner.ctx.hint("lfs0.bare", 0, 100, b"x"))).status == 0
        assert site.take(kernel.now_ns) is not None
        await ask(kernel, Learner.ctx.hint("lfs0.bare", 0, 100, b"x"))
        await kernel.rmmod("learner")
        assert site.held == 0


# --- the tree and the log ---


def read_text(kernel: uxk.Kernel, name: str) -> str:
    return kernel.sysfs.read(f"{PATH}/{name}").removesuffix("\n")


async def test_sysfs_shows_and_controls_a_model() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        proxy.dataset("writes", WRITES, 4)
        site = proxy.site("lfs0.gc", fine, units=4)
        site.epoch(default_kpi=1000, hinted_kpi=900, weight=160)
        for name, text in (
            ("mode", "learning"), ("state", "started"), ("efficiency_ppm", "100000"), ("share_ppm", "62500"),
            ("saved_ppm", "25000"), ("mode_override", "auto"), ("hints_applied", "0"), ("rejects/expired", "0"),
            ("datasets/writes/state", "allocated"), ("datasets/writes/schema", "lba <u4\nkind |u1\nages (3,)<u2"),
            ("sites/lfs0.gc/units", "4"),
        ):  # fmt: skip
            assert read_text(kernel, name) == text
        assert read_text(kernel, "evidence").startswith("better: ln e ")
        write: Callable[[str, str], None] = lambda name, text: kernel.sysfs.write(f"{PATH}/{name}", text)  # noqa: E731
        write("mode_override", "recommendation\n")
        assert (proxy.mode, read_text(kernel, "mode_override")) == (Mode.RECOMMENDATION, "recommendation")
        write("mode_override", "auto")
        write("control", "stop")
        assert (read_text(kernel, "state"), read_text(kernel, "mode")) == ("stopped", "emergency")
        write("control", "start")
        write("control", "prepare_dataset")
        assert read_text(kernel, "datasets/writes/state") == "clean"
        for name, text, number in (
            ("control", "sto", errno.EOPNOTSUPP), ("control", "start now", errno.EOPNOTSUPP),
            ("control", "start", errno.EBUSY), ("mode_override", "manual", errno.EINVAL), ("mode", "x", errno.EACCES),
        ):  # fmt: skip
            with pytest.raises(TreeError) as caught:
                write(name, text)
            assert caught.value.errno == number
        assert read_text(kernel, "timeline").splitlines()[-1].endswith("EMERGENCY LEARNING model started")
        for path, stat in list(kernel.sysfs.walk(PATH)):
            if stat.kind == "file" and stat.mode & 0o444:
                kernel.sysfs.read(path)


async def test_every_change_of_mode_is_one_line_one_event_and_in_the_hash() -> None:
    hashes = []
    for why in ("2 left", "2 left", "3 left"):
        async with uxk.Kernel(seed=1) as kernel:
            proxy = kernel.create_model("lfs", "lfs0")
            site = proxy.site("lfs0.gc", fine)
            await kernel.insmod(Learner)
            await kernel.run()
            site.watermark("clean_segments", critical=True, why=why)
            await kernel.run()
            lines = [r for r in kernel.kmsg.records(source="lfs/lfs0") if "mode" in r.fields]
            assert len(lines) == len(proxy.timeline) == 3
            assert lines[-1].text == f"mode LEARNING -> EMERGENCY at epoch 0: watermark clean_segments: {why}"
            assert lines[-1].fields == {"mode": "emergency", "epoch": 0}
            assert [ml.decode_mode(event.value) for event in heard("mode")] == proxy.timeline[-1:]
            assert proxy.report()["timeline"][-1]["to"] == "emergency"
            hashes.append(kernel.event_hash())
    assert hashes[0] == hashes[1] != hashes[2]


async def test_who_polls_the_mode_is_woken() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        proxy = kernel.create_model("lfs", "lfs0")
        woken: list[str] = []
        cancel = kernel.sysfs.poll(f"{PATH}/mode", lambda: woken.append(read_text(kernel, "mode")))
        proxy.override(Mode.COLLABORATION)
        cancel()
        assert woken == ["collaboration"]


@pytest.mark.parametrize("name", ["", "Lfs", "a b", "x" * 60])
async def test_names_are_checked(name: str) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        with pytest.raises(UsageError, match="model: name"):
            kernel.create_model("lfs", name)
        assert len(kernel.models) == 0
        proxy: MLModelProxy = kernel.create_model("lfs", "lfs0")
        for part in ("", ".", "..", "a/b", "a b", "a*", "[a]", "a:b", "ä", "x" * 60):
            for make in (lambda: proxy.site(part, fine), lambda: proxy.dataset(part, WRITES, 1)):  # noqa: B023
                with pytest.raises(UsageError, match="expected a name"):
                    make()
