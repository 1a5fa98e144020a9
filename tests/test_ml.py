"""The author's side of learning: what MLAgent does by itself, and learners of any make."""

from __future__ import annotations

import math
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
import trio

import uxk
from uxk import ml
from uxk.core.action import ActionConfig
from uxk.core.sysctl import Sysctl
from uxk.errors import ManifestError, UsageError
from uxk.kernel.proxy import MLModelProxy
from uxk.kernel.proxydata import ProxyDataset
from uxk.kernel.sites import ProxySite

COLUMNS = [("key", "<u4"), ("cost", "<i8")]


class Pupil(uxk.MLAgent):
    """Remembers what it hears; the tests speak through ``Pupil.last``."""

    manifest = uxk.Manifest(name="pupil", restart=uxk.RestartPolicy(backoff_ns=100))
    model = "river0"
    sites = ("river0.gate",)
    sysctls = ("river/depth",)
    last: ClassVar[Pupil]
    ctx: ClassVar[uxk.Context]
    advice: ClassVar[bytes | uxk.Advice | None] = b"ok"

    def setup(self, ctx: uxk.Context) -> None:  # does not call its base class
        self.heard: list[tuple[str, Any]] = []
        Pupil.last, Pupil.ctx = self, ctx

    def on_model(self, ctx: uxk.Context, info: uxk.ModelInfo | None) -> None:
        self.heard.append(("model", info and info.sites))

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        self.heard.append(("dataset", (dataset.name, dataset.generation, dataset.rows.tolist())))
        if dataset.rows["cost"].min(initial=0) < 0:
            raise ValueError("boom")

    def recommend(self, ctx: uxk.Context, site: str) -> bytes | uxk.Advice | None:
        return self.advice

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        self.heard.append(("feedback", feedback))

    def on_mode(self, ctx: uxk.Context, change: uxk.ModeChange) -> None:
        self.heard.append(("mode", (self.mode, change.new)))

    def on_action(self, ctx: uxk.Context, change: uxk.ActionChange) -> None:
        self.heard.append(("action", change.step.value))

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()  # so that tests may speak for it between its turns

    def of(self, topic: str) -> list[Any]:
        return [what for each, what in self.heard if each == topic]


class Warm(Pupil):
    """Counts datasets, and goes on counting after a crash."""

    manifest = uxk.Manifest(name="warm", restart=uxk.RestartPolicy(backoff_ns=100, max_restarts=9))
    poison: ClassVar[bool] = False
    size: ClassVar[int] = 1

    def setup(self, ctx: uxk.Context) -> None:
        super().setup(ctx)
        self.count = 0

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        super().on_dataset(ctx, dataset)
        self.count += 1

    def checkpoint(self) -> bytes:
        return bytes([self.count]) * self.size

    def restore(self, data: bytes) -> None:
        if Warm.poison:
            raise ValueError("cannot digest this")
        self.count = data[0]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pupil, "advice", b"ok")
    monkeypatch.setattr(Warm, "poison", False)
    monkeypatch.setattr(Warm, "size", 1)


class Stream:
    """A subsystem with a model, a dataset and a site that takes ``ok``."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.proxy: MLModelProxy = kernel.create_model("net", "river0")
        self.data: ProxyDataset = self.proxy.dataset("flow", COLUMNS, capacity=8)
        self.site: ProxySite = self.proxy.site("river0.gate", lambda payload: "" if payload == b"ok" else "malformed")

    async def publish(self, *rows: tuple[int, int]) -> None:
        self.data.append(list(rows))
        self.data.publish()
        await self.kernel.sleep_ns(0)


# --- the manifest ---


def test_capabilities_follow_from_what_it_names() -> None:
    assert Pupil.manifest.kind == "ml-agent"
    assert Pupil.manifest.capabilities == ("model:river0", "site:river0.gate", "sysctl:river/depth:submit")

    class Own(Pupil):
        manifest = uxk.Manifest(name="own", kind="both", capabilities=("kmsg:read", "model:river0:read,write"))
        sysctls = ()

    assert Own.manifest.capabilities == ("kmsg:read", "model:river0:read,write", "site:river0.gate")
    assert Own.manifest.kind == "both"

    class Other(Pupil):
        model = "river1"

    assert "model:river1" in Other.manifest.capabilities and "model:river1" not in Pupil.manifest.capabilities


def test_a_site_is_not_a_tuple_of_letters() -> None:
    with pytest.raises(ManifestError, match=r"Slip.sites is 'lfs0.gc', expected a tuple of names"):

        class Slip(uxk.MLAgent):
            manifest = uxk.Manifest(name="slip")
            sites = "lfs0.gc"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


# --- data and hints ---


async def test_data_in_hints_out_feedback_back() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Pupil)  # before there is a model
        Pupil.advice = uxk.Advice(b"ok", predicted=7, note="because")
        stream = Stream(kernel)
        await kernel.sleep_ns(0)
        await stream.publish((1, 10), (2, 20))
        agent = Pupil.last
        assert agent.of("dataset") == [("flow", 1, [(1, 10), (2, 20)])]
        assert (agent.of("model")[-1], agent.mode) == (("river0.gate",), uxk.Mode.LEARNING)
        hint = stream.site.standing(kernel.now_ns, 0)
        assert hint is not None
        assert (hint.payload, hint.dataset, hint.dataset_generation, hint.predicted, hint.ttl_ns) == (
            b"ok", stream.data.id, 1, 7, 1_000_000_000
        )  # fmt: skip
        stream.site.applied(hint, outcome=9, baseline=12)
        await kernel.sleep_ns(0)
        (feedback,) = agent.of("feedback")
        assert (feedback.outcome, feedback.baseline, feedback.reject) == (9, 12, "")
        advice = agent.advice_of(feedback)
        assert advice is not None and advice.note == "because"
        stream.proxy.close()
        await kernel.sleep_ns(0)
        assert (agent.of("model")[-1], agent.info, agent.mode) == (None, None, uxk.Mode.UNKNOWN)
        assert all(seen == new for seen, new in agent.of("mode"))


async def test_rows_are_the_kernels_and_cannot_be_written() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        kept: list[np.ndarray[Any, Any]] = []

        class Vandal(Pupil):
            manifest = uxk.Manifest(name="vandal")

            def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
                kept.append(dataset.rows)
                with pytest.raises(ValueError, match="read-only"):
                    dataset.rows["key"][0] = 9
                with pytest.raises(ValueError, match="cannot set WRITEABLE"):
                    dataset.rows.flags.writeable = True

        await kernel.insmod(Vandal)
        await stream.publish((1, 1))
        assert len(kept) == 1


async def test_predictions_are_integers_of_any_make() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Pupil)
        await kernel.sleep_ns(0)
        Pupil.last.advise(Pupil.ctx, "river0.gate", uxk.Advice(b"ok", predicted=np.int64(7)))  # type: ignore[arg-type]
        await kernel.sleep_ns(0)
        hint = stream.site.standing(kernel.now_ns)
        assert hint is not None and hint.predicted == 7
        with pytest.raises(TypeError, match="'float' object"):
            Pupil.last.advise(Pupil.ctx, "river0.gate", uxk.Advice(b"ok", predicted=7.5))  # type: ignore[arg-type]


async def test_a_further_model_does_not_pass_for_its_own() -> None:
    class Wide(Pupil):
        manifest = uxk.Manifest(name="wide", capabilities=("model:river1",))

        def setup(self, ctx: uxk.Context) -> None:
            super().setup(ctx)
            ctx.attach("river1")

    async with uxk.Kernel(seed=1) as kernel:
        stream, other = Stream(kernel), kernel.create_model("net", "river1")
        data = other.dataset("flow", COLUMNS, 4)
        await kernel.insmod(Wide)
        await kernel.sleep_ns(0)
        other.override(uxk.Mode.RECOMMENDATION)
        data.publish()
        await kernel.sleep_ns(0)
        other.close()
        await stream.publish((1, 1))
        agent = Pupil.last
        assert agent.info is not None and (agent.info.model_name, agent.mode) == ("river0", uxk.Mode.LEARNING)
        assert [info for info in agent.of("model") if not info] == [] and agent.of("mode") == []
        assert [rows for _, _, rows in agent.of("dataset")] == [[(1, 1)]]


async def test_generations_are_followed() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        stream.site.advance()
        await kernel.insmod(Pupil)
        await stream.publish((1, 1))
        assert stream.site.standing(kernel.now_ns) is not None
        stream.site.advance()
        await kernel.sleep_ns(0)
        assert stream.site.standing(kernel.now_ns) is None
        await stream.publish((1, 1))
        hint = stream.site.standing(kernel.now_ns)
        assert hint is not None and hint.generation == 2


async def test_what_is_refused_at_once_is_feedback_too() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Pupil)
        Pupil.advice = b"rubbish"
        await stream.publish((1, 1))
        await kernel.sleep_ns(0)
        (feedback,) = Pupil.last.of("feedback")
        assert (feedback.reject, feedback.site, feedback.dataset) == ("malformed", "river0.gate", stream.data.id)
        Pupil.last.advise(Pupil.ctx, "river0.gone", b"")
        await kernel.sleep_ns(0)
        assert Pupil.last.of("feedback")[-1].reject == "ENODEV"
        Pupil.advice = None
        await stream.publish((1, 1))
        assert Pupil.last.hints_sent == 2


async def test_a_full_queue_drops_advice() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        Stream(kernel)
        await kernel.insmod(Pupil)
        await kernel.sleep_ns(0)
        agent = Pupil.last
        sent = [agent.advise(Pupil.ctx, "river0.gate", b"ok") for _ in range(65)]
        assert (sent.count(0), agent.hints_dropped, agent.hints_sent) == (1, 1, 64)
        await kernel.sleep_ns(0)


async def test_a_dataset_that_was_overwritten_is_missed_and_no_crash() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Pupil)
        await kernel.sleep_ns(0)
        for number in range(4):
            stream.data.append([(number, 0)])
            stream.data.publish()
        await kernel.sleep_ns(0)
        agent = Pupil.last
        assert agent.datasets_seen + agent.datasets_missed == 4
        assert agent.datasets_missed >= 2
        assert agent.of("dataset")[-1] == ("flow", 4, [(3, 0)])
        assert kernel.agents["pupil"].restarter.restarts == 0


async def test_pull() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Pupil)
        await kernel.sleep_ns(0)
        stream.data.append([(5, 5)])
        Pupil.last.pull(Pupil.ctx, "flow")
        Pupil.last.pull(Pupil.ctx, "flo")
        await kernel.sleep_ns(0)
        assert Pupil.last.of("dataset") == [("flow", 1, [(5, 5)])]
        assert any("did you mean 'flow'" in record.text for record in kernel.kmsg.records(source="pupil"))


async def test_errors_in_hooks_are_contained() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Pupil)
        await stream.publish((1, -1))
        await kernel.sleep_ns(1000)
        assert kernel.agents["pupil"].restarter.restarts == 1
        await stream.publish((1, 1))
        assert Pupil.last.of("dataset") == [("flow", 2, [(1, 1)])]


async def test_news_of_actions() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        kernel.sysctl.register(Sysctl("river/depth", 3))
        watch = kernel.actions.watch("river/depth", lambda: 1, config=ActionConfig(epochs_min=1))
        watch.epoch()
        await kernel.insmod(Pupil)
        Pupil.ctx.recommend_sysctl("river/depth", 4, lifetime_ns=10)
        await kernel.sleep_ns(10)
        assert Pupil.last.of("action") == ["applied", "reverted"]


# --- checkpoints ---


async def crash(stream: Stream) -> None:
    await stream.publish((0, -1))
    await stream.kernel.sleep_ns(10_000_000)


def said(kernel: uxk.Kernel) -> str:
    return "\n".join(record.text for record in kernel.kmsg.records(source="warm"))


async def test_a_restarted_agent_continues_warm() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Warm)
        await kernel.sleep_ns(0)
        for _ in range(3):
            await stream.publish((1, 1))
        first = Pupil.last
        await crash(stream)
        assert Pupil.last is not first
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 3
        assert "restored a checkpoint of 1 bytes" in said(kernel)
        await stream.publish((1, 1))
        await crash(stream)
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 4


async def test_a_checkpoint_that_kills_is_left_out() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Warm)
        await kernel.sleep_ns(0)
        await stream.publish((1, 1))
        Warm.poison = True
        await crash(stream)
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 0
        assert kernel.agents["warm"].restarter.restarts == 2
        assert "ended the instance before this one: starting cold" in said(kernel)
        Warm.poison = False
        await stream.publish((1, 1))
        assert Pupil.last.count == 1


async def test_other_versions_are_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Warm)
        await kernel.sleep_ns(0)
        await stream.publish((1, 1))
        monkeypatch.setattr(ml, "versions_of", lambda names: dict.fromkeys(names, "9.9"))
        await crash(stream)
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 0
        assert "expected 9.9: starting cold" in said(kernel)
        await stream.publish((1, 1))
        assert Pupil.last.count == 1


async def test_a_checkpoint_that_names_nonsense_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Warm)
        await kernel.sleep_ns(0)
        with monkeypatch.context() as patch:
            patch.setattr(ml, "versions_of", lambda names: {"": "1", "../river": "1", "python": "3"})
            await stream.publish((1, 1))
        await crash(stream)
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 0
        assert kernel.agents["warm"].restarter.restarts == 1
        assert "../river 1, expected none" in said(kernel) and "starting cold" in said(kernel)


async def test_no_room_for_checkpoints_is_told() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)

        class Poor(Warm):
            manifest = uxk.Manifest(name="warm", budget=uxk.Budget(memory_bytes=4096))

        await kernel.insmod(Poor)
        await kernel.sleep_ns(0)
        await stream.publish((1, 1))
        assert "no checkpoints: warm: 524288 bytes of memory" in said(kernel)
        assert len(Pupil.last.of("dataset")) == 1
        assert not Pupil.last.save_checkpoint(Pupil.ctx)


async def test_a_checkpoint_too_long_is_told_once() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        stream = Stream(kernel)
        await kernel.insmod(Warm)
        await kernel.sleep_ns(0)
        await stream.publish((1, 1))
        Warm.size = 300 << 10
        await stream.publish((1, 1))
        await stream.publish((1, 1))
        assert said(kernel).count("there is room for") == 1
        await crash(stream)
        assert isinstance(Pupil.last, Warm) and Pupil.last.count == 1, "the one before is kept"


# --- rows ---


def test_rows_as_dicts() -> None:
    rows = np.array([(1, (2, 3), b"ab", True)], dtype=[("a", "<u4"), ("b", "<i2", (2,)), ("c", "S2"), ("d", "?")])
    assert list(uxk.feature_dicts(rows)) == [{"a": 1, "b.0": 2, "b.1": 3, "c": b"ab", "d": True}]
    assert [type(value) for value in next(uxk.feature_dicts(rows, ("a", "d"))).values()] == [int, bool]
    assert list(uxk.feature_dicts(rows[:0])) == []
    with pytest.raises(UsageError, match="column 'e'"):
        uxk.feature_dicts(rows, ("e",))


# --- learners ---


class Last:
    """Predicts what it saw last: any object will do."""

    def __init__(self, first: Any = None) -> None:
        self.seen = first

    def learn_one(self, x: dict[str, Any], y: Any) -> None:
        self.seen = y

    def predict_one(self, x: dict[str, Any]) -> Any:
        return self.seen


def test_any_object_learns() -> None:
    assert isinstance(Last(), uxk.Learner)
    model = uxk.online(Last())
    rows = np.array([(1, 10), (2, 30)], dtype=COLUMNS)
    assert model.predict_one({}, 5) == 5
    assert model.learn_many(rows, "cost") == 2
    assert model.predict_many(rows) == [30, 30]
    assert (model.learned, model.predicted, model.unknown) == (2, 3, 1)
    assert pickle.loads(pickle.dumps(model)).predict_one({}) == 30


@pytest.mark.parametrize("nonsense", [None, math.nan, math.inf, -math.inf, np.float64("nan")])
def test_nonsense_becomes_the_default(nonsense: Any) -> None:
    model = uxk.online(Last(nonsense))
    assert (model.predict_one({}, 1), model.unknown) == (1, 1)


def test_river_by_name_learns_a_line() -> None:
    model = uxk.online("linear_model.LinearRegression", intercept_lr=0.1)
    for step in range(400):
        model.test_then_learn({"x": (step * 7 % 10) / 10}, 3 * (step * 7 % 10) / 10)
    assert model.tested == 399
    assert model.error < model.naive_error / 2
    assert abs(model.predict_one({"x": 0.5}) - 1.5) < 0.2
    assert uxk.online("river.tree.HoeffdingTreeClassifier").predict_one({"x": 1}, "unsure") == "unsure"


def test_no_model_begins_with_a_seed_of_chance() -> None:
    assert vars(uxk.online("tree.HoeffdingAdaptiveTreeRegressor").model)["seed"] == 0
    assert vars(uxk.online("tree.HoeffdingAdaptiveTreeRegressor", seed=7).model)["seed"] == 7


def test_labels_are_right_or_wrong() -> None:
    model = uxk.online(Last())
    for label in ("a", "a", "b", "b"):
        model.test_then_learn({}, label)
    assert (model.tested, model.error, model.naive_error) == (3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("what", "settings", "says"),
    [
        ("linear_modl.LinearRegression", {}, "did you mean 'linear_model'"),
        ("linear_model.LinearRegresion", {}, "did you mean 'LinearRegression'"),
        ("LinearRegression", {}, "river has no ''"),
        ("linear_model.base.nothing.Model", {}, "there is no river.linear_model.base.nothing"),
        ("linear_model.base", {}, "river.linear_model has no class 'base'"),
        ("drift.ADWIN", {}, "ADWIN has no learn_one and no predict_one"),
        (Last, {}, "Last is a class, expected an object"),
        (Last(), {"l2": 1}, "settings l2 are for models by name"),
        (object(), {}, "object has no learn_one"),
    ],
)
def test_what_is_no_learner(what: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        uxk.online(what, **settings)


async def test_equal_seeds_equal_hashes() -> None:
    hashes = set()
    for _ in range(2):
        async with uxk.Kernel(seed=4) as kernel:
            stream = Stream(kernel)
            await kernel.insmod(Warm)
            for number in range(5):
                await stream.publish((number, number))
            await crash(stream)
            hashes.add(kernel.event_hash())
    assert len(hashes) == 1
