"""scikit-learn with array_api_dispatch: estimators that fit on tensors, and metrics of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn
import sklearn.metrics as metrics
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import (
    Binarizer,
    LabelEncoder,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    StandardScaler,
)

import ferrum_array as fa
from tests.doors.same import numbers, same

pytestmark = pytest.mark.door("scikit-learn, array_api_dispatch")

X = numbers(40, 4)
CLASSES = (np.arange(40) % 2).astype(np.int32)
TARGET = X @ np.asarray([1.0, -2.0, 0.5, 0.0], np.float32)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        pytest.param(lambda x: abs(PCA(2, svd_solver="full").fit_transform(x)), (X,), id="PCA"),
        pytest.param(lambda x, y: Ridge(solver="svd").fit(x, y).predict(x), (X, TARGET), id="Ridge"),
        pytest.param(lambda x, y: LinearDiscriminantAnalysis().fit(x, y).predict(x), (X, CLASSES), id="LDA"),
        pytest.param(lambda x, y: GaussianNB().fit(x, y).predict(x), (X, CLASSES), id="GaussianNB"),
        *(
            pytest.param(lambda x, scaler=scaler: scaler().fit_transform(x), (X,), id=scaler.__name__)
            for scaler in (StandardScaler, MinMaxScaler, MaxAbsScaler, Normalizer, Binarizer, PolynomialFeatures)
        ),
        pytest.param(lambda y: LabelEncoder().fit_transform(y), (CLASSES,), id="LabelEncoder"),
        pytest.param(lambda x: train_test_split(x, random_state=0)[0], (X,), id="train_test_split"),
        pytest.param(metrics.pairwise.rbf_kernel, (X[:5],), id="rbf_kernel"),
        pytest.param(metrics.pairwise.cosine_similarity, (X[:5],), id="cosine_similarity"),
    ],
)
def test_results_are_those_for_numpy(function: Callable[..., Any], arrays: tuple[Any, ...], device: fa.Device) -> None:
    with sklearn.config_context(array_api_dispatch=True):
        same(function, device, *arrays, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("metric", "arrays"),
    [
        (metrics.accuracy_score, (CLASSES, CLASSES[::-1].copy())),
        (metrics.f1_score, (CLASSES, np.roll(CLASSES, 3))),
        (metrics.r2_score, (TARGET, TARGET + 0.5)),
        (metrics.mean_squared_error, (TARGET, TARGET + 0.5)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_metrics_are_those_of_numpy(metric: Callable[..., Any], arrays: tuple[Any, Any], device: fa.Device) -> None:
    with sklearn.config_context(array_api_dispatch=True), fa.default_device(device):
        found = metric(*(fa.asarray(array) for array in arrays))
    assert float(found) == pytest.approx(float(metric(*arrays)), rel=1e-4)
