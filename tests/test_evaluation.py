"""Models are scored as river scores them, after a part to train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from river import evaluate as river_evaluate
from river import linear_model, metrics, neighbors, preprocessing, tree

import uxk
from uxk.core.rows import feature_dicts
from uxk.errors import UsageError

DTYPE = [
    ("uxk_run", "<u4"),
    ("uxk_time_ns", "<u8"),
    ("uxk_generation", "<u8"),
    ("a", "<i4"),
    ("b", "<i4"),
    ("y", "<i8"),
]


def rows(count: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.zeros(count, DTYPE)
    found["uxk_time_ns"] = np.cumsum(rng.integers(0, 9, count))
    found["a"], found["b"] = rng.integers(-50, 50, (2, count))
    found["y"] = 3 * found["a"] - 2 * found["b"] + rng.integers(0, 5, count)
    return found


def model() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


@pytest.mark.parametrize("delay", [0, 7, 40])
def test_scores_are_those_of_rivers_progressive_val_score(delay: int) -> None:
    data = rows()
    train, test = uxk.split_by_time(data, 0.5)

    def pairs(part: np.ndarray) -> Any:
        return zip(feature_dicts(part, ("a", "b")), part["y"].tolist(), strict=True)

    theirs, scores = model(), []
    for part in (train, test):
        moments = iter(part["uxk_time_ns"].tolist())
        when = {"moment": lambda x, moments=moments: next(moments), "delay": delay} if delay else {}
        scores.append(river_evaluate.progressive_val_score(pairs(part), theirs, metrics.MAE(), **when).get())
    found = uxk.evaluate(model(), data, "y", train=0.5, delay=delay)
    assert [found.train.value, found.test.value] == pytest.approx(scores)
    assert (found.train.rows, found.test.rows) == (len(train), len(test))
    assert found.test.value < found.test.naive / 3
    assert found.split == (int(data["uxk_time_ns"][0]) + int(data["uxk_time_ns"][-1])) // 2


def test_rows_are_split_by_time_and_never_within_one() -> None:
    data = rows()
    for share in (0.0, 0.3, 0.8, 1.0):
        train, test = uxk.split_by_time(data, share)
        assert len(train) + len(test) == len(data)
        assert not len(test) or train["uxk_time_ns"].max() < test["uxk_time_ns"].min()
    train, test = uxk.split_by_time(data, at=100)
    assert train["uxk_time_ns"].max() <= 100 < test["uxk_time_ns"].min()
    assert [len(part) for part in uxk.split_by_time(data[:0])] == [0, 0]


def test_a_frozen_model_learns_nothing_in_the_test() -> None:
    data = rows()
    data["y"][300:] += 1000
    at = int(data["uxk_time_ns"][299])
    frozen, learning = (uxk.evaluate(model(), data, "y", at=at, frozen=frozen) for frozen in (True, False))
    assert frozen.train == learning.train
    assert frozen.test.value > 2 * learning.test.value


def test_labels_and_models_that_say_nothing_at_first() -> None:
    data = rows()
    data["y"] = data["a"] > 0
    found = uxk.evaluate(tree.HoeffdingTreeClassifier(), data, "y", features=("a",), metric="Accuracy")
    assert found.test.value > 0.9
    assert found.train.tested < found.train.rows  # it has no opinion before the first label
    assert uxk.evaluate(uxk.online(neighbors.KNNRegressor()), data, "y").test.tested > 0


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"target": "z"}, "column 'z'.* there are"),
        ({"features": ("a", "bb")}, r"column 'bb' \(did you mean 'b'\?\)"),
        ({"time": "tim"}, "time 'tim'"),
        ({"train": 1.5}, "train=1.5"),
        ({"delay": -1}, "delay=-1"),
        ({"metric": "MAEE"}, r"metric 'MAEE' \(did you mean 'MAE'\?\)"),
        ({"metric": "base"}, "no such class"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored(how: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        uxk.evaluate(model(), rows(), **{"target": "y", **how})


def test_several_runs_are_not_one_time() -> None:
    with pytest.raises(UsageError, match="time goes backwards at row 400: expected rows of one run"):
        uxk.evaluate(model(), np.concatenate([rows(), rows()]), "y")
