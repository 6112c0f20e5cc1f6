"""SciPy with SCIPY_ARRAY_API=1: its functions take tensors and give tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.constants
import scipy.differentiate
import scipy.fft
import scipy.integrate
import scipy.ndimage
import scipy.optimize.elementwise
import scipy.signal
import scipy.special
import scipy.stats

import ferrum_array as fa
from tests.doors.same import numbers, same

pytestmark = pytest.mark.door("SciPy, SCIPY_ARRAY_API=1")

X = numbers(40, 4)
POSITIVE = np.abs(numbers(12)) + np.float32(0.5)


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        pytest.param(scipy.fft.fft, (X,), id="fft.fft"),
        pytest.param(scipy.fft.rfftn, (X,), id="fft.rfftn"),
        pytest.param(scipy.fft.dct, (X,), id="fft.dct"),
        pytest.param(scipy.special.softmax, (X,), id="special.softmax"),
        pytest.param(lambda x: scipy.special.logsumexp(x, axis=0), (X,), id="special.logsumexp"),
        pytest.param(scipy.special.gamma, (POSITIVE,), id="special.gamma"),
        pytest.param(scipy.special.expit, (X,), id="special.expit"),
        pytest.param(scipy.special.xlogy, (POSITIVE, POSITIVE), id="special.xlogy"),
        pytest.param(scipy.stats.zscore, (X,), id="stats.zscore"),
        pytest.param(scipy.stats.skew, (X,), id="stats.skew"),
        pytest.param(scipy.stats.kurtosis, (X,), id="stats.kurtosis"),
        pytest.param(lambda a, b: scipy.stats.ttest_ind(a, b).pvalue, (X[:20], X[20:]), id="stats.ttest_ind"),
        pytest.param(lambda a, b: scipy.stats.pearsonr(a, b).statistic, (X[:, 0], X[:, 1]), id="stats.pearsonr"),
        pytest.param(scipy.stats.entropy, (POSITIVE,), id="stats.entropy"),
        pytest.param(scipy.stats.gmean, (POSITIVE,), id="stats.gmean"),
        pytest.param(scipy.cluster.vq.whiten, (X,), id="cluster.whiten"),
        pytest.param(scipy.cluster.vq.vq, (X, X[:3]), id="cluster.vq"),
        pytest.param(scipy.integrate.trapezoid, (X,), id="integrate.trapezoid"),
        pytest.param(scipy.integrate.cumulative_trapezoid, (X,), id="integrate.cumulative_trapezoid"),
        pytest.param(scipy.signal.convolve, (POSITIVE, POSITIVE), id="signal.convolve"),
        pytest.param(scipy.signal.fftconvolve, (POSITIVE, POSITIVE), id="signal.fftconvolve"),
        pytest.param(scipy.signal.hilbert, (POSITIVE,), id="signal.hilbert"),
        pytest.param(scipy.signal.detrend, (POSITIVE,), id="signal.detrend"),
        pytest.param(lambda x: scipy.ndimage.gaussian_filter(x, 1.0), (X,), id="ndimage.gaussian_filter"),
        pytest.param(scipy.optimize.rosen, (POSITIVE,), id="optimize.rosen"),
        pytest.param(
            lambda x: scipy.constants.convert_temperature(x, "C", "K"), (X,), id="constants.convert_temperature"
        ),
    ],
)
def test_results_are_those_for_numpy(function: Callable[..., Any], arrays: tuple[Any, ...], device: fa.Device) -> None:
    same(function, device, *arrays)


def test_roots_are_found_elementwise(device: fa.Device) -> None:
    bracket = (fa.asarray([1.0, 1.0], device=device), fa.asarray([3.0, 2.0], device=device))
    squares = fa.asarray([4.0, 2.0], device=device)
    with fa.default_device(device):
        found = scipy.optimize.elementwise.find_root(lambda x, square: x * x - square, bracket, args=(squares,))
    assert type(found.x) is fa.Tensor
    assert fa.all(fa.isclose(found.x, fa.sqrt(squares)))


def test_derivatives_are_taken_elementwise(device: fa.Device) -> None:
    x = fa.asarray([0.0, 1.0], device=device)
    with fa.default_device(device):
        found = scipy.differentiate.derivative(fa.exp, x)
    assert type(found.df) is fa.Tensor
    assert fa.all(fa.isclose(found.df, fa.exp(x), rtol=1e-3))
