"""Models to compile: trained on whole numbers, small enough for a test."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import numpy as np
from river import forest, linear_model, optim, preprocessing, tree

from uxk.bpf.compiler.nets import Net
from uxk.bpf.compiler.schema import Feature, Schema

SCHEMA = Schema([
    Feature("size", 1, 2048, "blocks"), Feature("age", 0, 20_000_000_000, "ns"), Feature("valid", 0, 1_000_000, "ppm"),
    Feature("drift", -50, 150), Feature("depth", 0, 64),
])  # fmt: skip
ROWS = 4_000
MEANS, DEVIATIONS = (1_024, 1e10, 5e5, 50, 32), (600, 6e9, 3e5, 60, 18)


def rows(count: int = ROWS, seed: str = "rows") -> list[dict[str, int]]:
    """Rows drawn evenly from the ranges."""
    rng = Random(seed)
    return [{f.name: rng.randint(f.low, f.high) for f in SCHEMA.features} for _ in range(count)]


def label(x: dict[str, int]) -> int:
    """What there is to learn: two of three conditions."""
    return int((x["age"] > 5_000_000_000) + (x["valid"] < 300_000) + (x["depth"] > 40) >= 2)


def cost(x: dict[str, int]) -> float:
    """What there is to regress on."""
    return x["size"] * 0.25 + 3 * x["depth"] - x["valid"] * 1e-3 + (50 if x["drift"] > 100 else 0)


def learnt(model: Any, target: Any = label, count: int = ROWS) -> Any:
    """The model, trained; a twentieth of the labels are wrong, so that trees grow."""
    rng = Random("noise")
    for x in rows(count):
        y = target(x)
        model.learn_one(x, 1 - y if target is label and rng.random() < 0.05 else y)
    return model


def seventh(x: dict[str, int]) -> str:
    """Seven classes with names."""
    return "abcdefg"[x["age"] // 3_000_000_000]


_QUICK: dict[str, Any] = {"leaf_prediction": "mc", "grace_period": 40, "delta": 0.05}
CLASSIFIERS = (
    "tree", "adaptive", "fast", "scaled", "bayes", "forest", "seven", "logistic", "passive", "alma", "softmax", "net",
    "net of one",
)  # fmt: skip
REGRESSORS = ("linear", "passive sum", "means", "leaves", "alternating", "medians", "averages", "a net")


@cache
def model_of(name: str) -> Any:
    """A trained model: of CLASSIFIERS, whose programs must agree everywhere or as good as, or of REGRESSORS."""
    scaler = preprocessing.StandardScaler
    match name:
        case "tree":
            return learnt(tree.HoeffdingTreeClassifier(**_QUICK))
        case "adaptive":
            return learnt(tree.HoeffdingAdaptiveTreeClassifier(**_QUICK, seed=1))
        case "fast":
            return learnt(tree.ExtremelyFastDecisionTreeClassifier(**_QUICK, min_samples_reevaluate=2_000), count=2_000)
        case "scaled":
            return learnt(scaler() | tree.HoeffdingTreeClassifier(**_QUICK))
        case "forest":
            return learnt(forest.ARFClassifier(n_models=4, seed=1, **_QUICK), count=1_500)
        case "seven":
            return learnt(forest.ARFClassifier(n_models=3, seed=1, **_QUICK), seventh, count=1_500)
        case "bayes":
            return learnt(scaler() | tree.HoeffdingTreeClassifier(grace_period=100), seventh)
        case "passive":
            return learnt(scaler() | linear_model.PAClassifier(), count=1_000)
        case "alma":
            return learnt(preprocessing.MaxAbsScaler() | linear_model.ALMAClassifier(), count=1_000)
        case "softmax":
            return learnt(preprocessing.MinMaxScaler() | linear_model.SoftmaxRegression(), seventh, count=1_000)
        case "passive sum":
            return learnt(scaler() | linear_model.PARegressor(C=0.01), cost, count=1_000)
        case "medians":
            return learnt(forest.ARFRegressor(n_models=4, leaf_prediction="mean", seed=1), cost, count=1_000)
        case "averages":
            whole = forest.ARFRegressor(n_models=3, aggregation_method="mean", max_depth=3, seed=1)
            return learnt(scaler() | whole, cost, count=1_000)
        case "logistic":
            return learnt(scaler() | linear_model.LogisticRegression(optim.SGD(0.1)))
        case "linear":
            return learnt(scaler() | linear_model.LinearRegression(), cost)
        case "means":
            return learnt(tree.HoeffdingTreeRegressor(leaf_prediction="mean"), cost)
        case "leaves":
            return learnt(scaler() | tree.HoeffdingTreeRegressor(), cost)
        case "alternating":
            return learnt(tree.HoeffdingAdaptiveTreeRegressor(leaf_prediction="mean", seed=1), cost)
        case "net":
            return net(3, labels=("no", "perhaps", "yes"))
        case "net of one":
            return net(1, labels=(False, True))
        case _:
            return net(1, labels=None)


def net(outputs: int, labels: Any) -> Net:
    """Two hidden layers of chance."""
    rng = np.random.default_rng(outputs)
    shapes = [(12, 5), (8, 12), (outputs, 8)]
    layers = [(rng.normal(size=shape), rng.normal(size=shape[0])) for shape in shapes]
    return Net(layers, labels, MEANS, DEVIATIONS)
