"""How good a model is: split by time, then predict first and learn after, in one call (R48).

Prequential evaluation (Gama, Sebastiao and Rodrigues, KDD 2009) in the order and with the delays of river's
``stream.simulate_qa``, so that figures are those of its ``evaluate.progressive_val_score``; but for every
:class:`~uxk.ml.Learner`, with a part to train on before, and beside who predicts what came last.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from uxk.core.rows import Features, feature_dicts
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.ml import Learner

TIME: Final = "uxk_time_ns"
"""The column with the time of publication that a dataset log adds."""
_OF_THE_LOG: Final = frozenset({"uxk_run", "uxk_generation", TIME})


@runtime_checkable
class Metric(Protocol):
    """One of river's, or anything alike."""

    def update(self, y_true: Any, y_pred: Any) -> object:
        """One prediction and what came."""
        ...

    def get(self) -> float:
        """The value so far."""
        ...


class Score(NamedTuple):
    """One part's figures."""

    rows: int
    tested: int
    """Rows with a prediction: a model may have none at first."""
    value: float
    """Of the metric."""
    naive: float
    """The same of who predicts what came last: a model that is no better has learned nothing."""


class Evaluation(NamedTuple):
    """What :func:`evaluate` found."""

    metric: str
    split: int
    """The time after which rows are for the test."""
    train: Score
    test: Score


def split_by_time(
    rows: NDArray[Any], train: float = 0.8, *, time: str = TIME, at: int | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows until a time, and those after: ``at``, or this share of the time that they span.

    Rows of one time are never parted.  UsageError if there is no such column, or if its time goes backwards (one run
    at a time), or for a share outside 0 to 1.
    """
    count = int(np.searchsorted(_times(rows, time), _boundary(rows, train, time, at), side="right"))
    return rows[:count], rows[count:]


def evaluate(
    model: Learner, rows: NDArray[Any], target: str, *, features: Sequence[str] = (), train: float = 0.8,
    at: int | None = None, time: str = TIME, delay: int = 0, metric: str = "MAE", frozen: bool = False,
) -> Evaluation:  # fmt: skip
    """Trains ``model`` on the rows until a time, then tests it on those after; in both it predicts before it learns.

    ``features`` are all columns but the target and the log's own, unless named.  What came of a row is told ``delay``
    later, in the unit of the column ``time``.  ``metric`` is one of river's by name.  A ``frozen`` model learns nothing
    in the test.  UsageError as :func:`split_by_time`, and for names that do not exist.
    """
    columns = rows.dtype.names or ()
    for name in (target, *features):
        if name not in columns:
            raise UsageError(f"column {name!r}{did_you_mean(name, columns)}; there are: {', '.join(columns)}")
    if delay < 0:
        raise UsageError(f"delay={delay}: expected 0 or more")
    names = tuple(features) or tuple(name for name in columns if name not in {target, time, *_OF_THE_LOG})
    make = _metric(metric)
    boundary = _boundary(rows, train, time, at)
    parts = split_by_time(rows, train, time=time, at=boundary)
    scores = [
        _score(model, part, target, names, time, delay, (make(), make()), learn=not (frozen and number))
        for number, part in enumerate(parts)
    ]
    return Evaluation(metric, boundary, scores[0], scores[1])


def _times(rows: NDArray[Any], time: str) -> NDArray[Any]:
    columns = rows.dtype.names or ()
    if time not in columns:
        raise UsageError(f"time {time!r}{did_you_mean(time, columns)}; there are: {', '.join(columns)}")
    times: NDArray[Any] = rows[time]
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        raise UsageError(f"time goes backwards at row {int(back[0]) + 1}: expected rows of one run")
    return times


def _boundary(rows: NDArray[Any], train: float, time: str, at: int | None) -> int:
    if at is not None:
        return at
    if not 0 <= train <= 1:
        raise UsageError(f"train={train}: expected a share, 0 to 1")
    times = _times(rows, time)
    return int(times[0]) + int(train * (int(times[-1]) - int(times[0]))) if len(times) else 0


def _metric(name: str) -> Any:
    known = vars(importlib.import_module("river.metrics"))
    found = known.get(name)
    if not isinstance(found, type) or not issubclass(found, Metric):
        raise UsageError(f"metric {name!r}{did_you_mean(name, known)}: river.metrics has no such class")
    return found


def _score(
    model: Learner, rows: NDArray[Any], target: str, names: tuple[str, ...], time: str, delay: int,
    metrics: tuple[Metric, Metric], *, learn: bool,
) -> Score:  # fmt: skip
    """Questions and answers of one part, in order of time."""
    stream = importlib.import_module("river.stream")
    told, naive = metrics
    answers: dict[int, tuple[Any, Any]] = {}
    last: Any = None
    tested = 0
    for number, item, y in stream.simulate_qa(
        _items(rows, target, names, time), moment="time" if delay else None, delay=delay or None, copy=False
    ):
        if y is None:
            answers[number] = model.predict_one(item["x"]), last
            continue
        guess, before = answers.pop(number)
        if guess is not None:
            told.update(y, guess)
            tested += 1
        if before is not None:
            naive.update(y, before)
        if learn:
            model.learn_one(item["x"], y)
        last = y
    return Score(len(rows), tested, float(told.get()), float(naive.get()))


def _items(rows: NDArray[Any], target: str, names: tuple[str, ...], time: str) -> Iterator[tuple[dict[str, Any], Any]]:
    xs: Iterator[Features] = feature_dicts(rows, names)
    for x, y, moment in zip(xs, rows[target].tolist(), rows[time].tolist(), strict=True):
        yield {"x": x, "time": moment}, y
