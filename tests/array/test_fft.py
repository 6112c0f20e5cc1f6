"""Fourier transforms beside NumPy in complex128."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from tests.array.oracle import BOOL, COMPLEX, FLOATS, HALVES, INTEGERS, check, moderate, on, wide

REAL = (*INTEGERS, *FLOATS)
SHAPES = st.sampled_from([(4,), (5,), (2, 3), (3, 2, 4)])
EMPTY = st.sampled_from([(0,), (0, 3), (2, 0, 2)])
NORMS = st.sampled_from(["backward", "ortho", "forward"])

ONE = {"fft": REAL + COMPLEX, "ifft": REAL + COMPLEX, "rfft": REAL, "irfft": REAL + COMPLEX, "hfft": REAL + COMPLEX,
       "ihfft": REAL}  # fmt: skip
SEVERAL = {"fftn": REAL + COMPLEX, "ifftn": REAL + COMPLEX, "rfftn": REAL, "irfftn": REAL + COMPLEX}
REAL_RESULT = ("irfft", "hfft", "irfftn")


def result(name: str, dtype: fa.Dtype) -> fa.Dtype:
    lifted = dtype if dtype.is_complex or dtype.is_floating else fa.float32
    return lifted.complex.real if name in REAL_RESULT else lifted.complex


def compare(name: str, found: fa.Tensor, wanted: Any, dtype: fa.Dtype, device: fa.Device) -> None:
    kind = result(name, dtype)
    scale = max(1.0, float(np.max(np.abs(wanted), initial=0)))
    check(found, wanted, kind, ulps=32, atol=32 * fa.finfo(kind).eps * scale, device=device)


@pytest.mark.parametrize("name", ONE)
def test_one_axis(name: str, device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, ONE[name])))
        if not device.supports(result(name, dtype)) or not device.supports(
            dtype.complex if not dtype.is_integer else fa.complex64
        ):
            return
        x = data.draw(moderate(dtype, SHAPES, device=device))
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        n = data.draw(st.one_of(st.none(), st.integers(2, 7)))
        norm = data.draw(NORMS)
        wanted = getattr(np.fft, name)(wide(x), n=n, axis=axis, norm=norm)
        compare(name, getattr(fa.fft, name)(x, n=n, axis=axis, norm=norm), wanted, dtype, device)

    property_()


@pytest.mark.parametrize("name", ONE)
def test_an_axis_without_points_is_filled_with_zeros(name: str, device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 4))
    @given(EMPTY, st.integers(1, 7), NORMS)
    def property_(shape: tuple[int, ...], n: int, norm: Any) -> None:
        axis = shape.index(0)
        x = fa.zeros(shape, dtype="f32" if name in ("rfft", "ihfft") else "c64", device=device)
        found = getattr(fa.fft, name)(x, n=n, axis=axis, norm=norm)
        points = n // 2 + 1 if name in ("rfft", "ihfft") else n
        wanted = np.zeros((*shape[:axis], points, *shape[axis + 1 :]))
        check(found, wanted, fa.float32 if name in REAL_RESULT else fa.complex64, device=device)

    property_()


@pytest.mark.parametrize("name", SEVERAL)
def test_several_axes(name: str, device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, SEVERAL[name])))
        if not device.supports(result(name, dtype)) or not device.supports(
            dtype.complex if not dtype.is_integer else fa.complex64
        ):
            return
        x = data.draw(moderate(dtype, SHAPES, device=device))
        axes = data.draw(st.permutations(range(x.ndim)).flatmap(lambda p: st.integers(1, len(p)).map(lambda k: p[:k])))
        s = data.draw(st.one_of(st.none(), st.just([4] * len(axes))))
        norm = data.draw(NORMS)
        wanted = getattr(np.fft, name)(wide(x), s=s, axes=axes, norm=norm)
        found = getattr(fa.fft, name)(x, s=s, axes=axes, norm=norm)
        compare(name, found, wanted, dtype, device)
        compare(name, getattr(fa.fft, name)(x), getattr(np.fft, name)(wide(x)), dtype, device)

    property_()


def test_there_and_back(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        x = data.draw(moderate(fa.complex64, SHAPES, device=device))
        norm = data.draw(NORMS)
        for there, back in ((fa.fft.fft, fa.fft.ifft), (fa.fft.fftn, fa.fft.ifftn)):
            found = wide(back(there(x, norm=norm), norm=norm))
            assert np.allclose(found, wide(x), rtol=1e-4, atol=1e-3)
        real = fa.real(x)
        found = wide(fa.fft.irfft(fa.fft.rfft(real), n=x.shape[-1]))
        assert np.allclose(found, wide(real), rtol=1e-4, atol=1e-3)

    property_()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_frequencies(n: int, device: fa.Device) -> None:
    for name in ("fftfreq", "rfftfreq"):
        for dtype in on(device, (fa.float32, fa.float64)):
            found = getattr(fa.fft, name)(n, d=0.3, dtype=dtype, device=device)
            check(found, getattr(np.fft, name)(n, d=0.3), dtype, ulps=2, device=device)
        assert getattr(fa.fft, name)(n, device=device).dtype is fa.float32


@pytest.mark.parametrize("name", ["fftfreq", "rfftfreq"])
def test_frequencies_in_16_bits_are_rounded_once(name: str, device: fa.Device) -> None:
    @given(st.integers(1, 200_000), st.sampled_from([1.0, 0.1, 3.0]), st.sampled_from(HALVES))
    def property_(n: int, d: float, dtype: fa.Dtype) -> None:
        found = getattr(fa.fft, name)(n, d=d, dtype=dtype, device=device)
        check(found, getattr(np.fft, name)(n, d=d), dtype, ulps=1, device=device)
        # the numbers of points are exact in float32, and so is a power of two: the one rounding is the last
        n = 1 << (n.bit_length() - 1)
        found = getattr(fa.fft, name)(n, dtype=dtype, device=device)
        check(found, getattr(np.fft, name)(n), dtype, device=device)

    property_()


def test_shifts(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, (*BOOL, *REAL, *COMPLEX))))
        x = data.draw(moderate(dtype, SHAPES, device=device))
        axes = data.draw(st.one_of(st.none(), st.just(0), st.just((0, -1) if x.ndim > 1 else (0,))))
        check(fa.fft.fftshift(x, axes=axes), np.fft.fftshift(wide(x), axes), dtype, device=device)
        check(fa.fft.ifftshift(x, axes=axes), np.fft.ifftshift(wide(x), axes), dtype, device=device)

    property_()
