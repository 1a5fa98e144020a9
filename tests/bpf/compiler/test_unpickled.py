"""Pickles of all kinds of models are read; those that name something else are not."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import numpy as np
import pytest
from model_cases import CLASSIFIERS, REGRESSORS, cost, learnt, model_of
from river import datasets, forest, linear_model, optim, preprocessing, tree, utils

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.unpickle import unpickled
from uxk.ml import online


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_models_are_read(protocol: int) -> None:
    others = (
        learnt(online("forest.ARFRegressor", seed=1), cost, 200), learnt(forest.ARFClassifier(n_models=2), count=200),
        learnt(tree.HoeffdingAdaptiveTreeRegressor(seed=1), cost, 300), learnt(linear_model.Perceptron(), count=30),
        learnt(preprocessing.StandardScaler(window_size=9) | linear_model.LogisticRegression(optim.Adam()), count=50),
    )  # fmt: skip
    for model in (*map(model_of, (*CLASSIFIERS, *REGRESSORS)), *others):
        found = unpickled(pickle.dumps(model, protocol=protocol))
        assert type(found) is type(model)


class Call:
    """What a stranger would put into a pickle."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "call",
    [
        Call(eval, "1"), Call(importlib.import_module, "this"), Call(datasets.Phishing), Call(np.load, "x"),
        Call(getattr, [], "sort"), Call(getattr, utils, "math"), Call(getattr, optim.SGD, "__init_subclass__"),
        Call(getattr, Call, "__reduce__"), Call(learnt), Call(utils.math.sigmoid, 1.0),
    ],
)  # fmt: skip
def test_code_is_not_run(call: Any) -> None:
    data = (
        pickle.dumps([call]) if call.arguments[:1] != (utils,) else b"cbuiltins\ngetattr\n(criver\nutils\nS'math'\ntR."
    )
    with pytest.raises(CompileError, match="of which no model of river's consists"):
        unpickled(data)


def test_names_that_lead_elsewhere() -> None:
    for module, name in (
        (b"river.tree.utils", b"sys.exit"),
        (b"river.tree.utils", b"copy.deepcopy"),
        (b"os", b"system"),
    ):
        data = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93."
        with pytest.raises(CompileError, match="of which no model of river's consists"):
            unpickled(data)
