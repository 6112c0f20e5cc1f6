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


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "fft.fft": (scipy.fft.fft, (X,)),
    "fft.rfftn": (scipy.fft.rfftn, (X,)),
    "fft.dct": (scipy.fft.dct, (X,)),
    "special.softmax": (scipy.special.softmax, (X,)),
    "special.logsumexp": (lambda x: scipy.special.logsumexp(x, axis=0), (X,)),
    "special.gamma": (scipy.special.gamma, (POSITIVE,)),
    "special.expit": (scipy.special.expit, (X,)),
    "special.xlogy": (scipy.special.xlogy, (POSITIVE, POSITIVE)),
    "stats.zscore": (scipy.stats.zscore, (X,)),
    "stats.skew": (scipy.stats.skew, (X,)),
    "stats.kurtosis": (scipy.stats.kurtosis, (X,)),
    "stats.ttest_ind": (lambda a, b: scipy.stats.ttest_ind(a, b).pvalue, (X[:20], X[20:])),
    "stats.pearsonr": (lambda a, b: scipy.stats.pearsonr(a, b).statistic, (X[:, 0], X[:, 1])),
    "stats.entropy": (scipy.stats.entropy, (POSITIVE,)),
    "stats.gmean": (scipy.stats.gmean, (POSITIVE,)),
    "cluster.whiten": (scipy.cluster.vq.whiten, (X,)),
    "cluster.vq": (scipy.cluster.vq.vq, (X, X[:3])),
    "integrate.trapezoid": (scipy.integrate.trapezoid, (X,)),
    "integrate.cumulative_trapezoid": (scipy.integrate.cumulative_trapezoid, (X,)),
    "signal.convolve": (scipy.signal.convolve, (POSITIVE, POSITIVE)),
    "signal.fftconvolve": (scipy.signal.fftconvolve, (POSITIVE, POSITIVE)),
    "signal.hilbert": (scipy.signal.hilbert, (POSITIVE,)),
    "signal.detrend": (scipy.signal.detrend, (POSITIVE,)),
    "ndimage.gaussian_filter": (lambda x: scipy.ndimage.gaussian_filter(x, 1.0), (X,)),
    "optimize.rosen": (scipy.optimize.rosen, (POSITIVE,)),
    "constants.convert_temperature": (lambda x: scipy.constants.convert_temperature(x, "C", "K"), (X,)),
}
#: SciPy computes these in code of its own for the memory of the host
ON_HOST = frozenset(
    ("fft.dct", "special.gamma", "special.expit", "stats.ttest_ind", "stats.pearsonr", "stats.entropy", "cluster.vq")
    + ("signal.convolve", "signal.detrend", "ndimage.gaussian_filter")
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_those_for_numpy(name: str, device: fa.Device) -> None:
    function, arrays = FUNCTIONS[name]
    if device.kind == "cuda" and name in ON_HOST:
        with pytest.raises(TypeError, match="not copied to the host"):
            same(function, device, *arrays)
        pytest.skip("not run: device memory is copied by t.numpy() alone")
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
