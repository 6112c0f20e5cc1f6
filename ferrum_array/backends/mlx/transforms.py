"""Fourier transforms of float32 and complex64; the core converts to these, since there is no complex128."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ferrum_array.backends.mlx.chapter import Chapter

__all__ = ["Transforms"]

#: The normalisation of the inverse transform that divides where the forward one does.
_OPPOSITE = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


class Transforms(Chapter):
    """``fft`` and its relatives along one axis."""

    def _call(self, function: Callable[..., mx.array], x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return function(x, n=n, axis=axis, norm=norm, stream=self.stream)

    def fn_fft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return self._call(mx.fft.fft, x, n, axis, norm)

    def fn_ifft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return self._call(mx.fft.ifft, x, n, axis, norm)

    def fn_rfft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return self._call(mx.fft.rfft, x, n, axis, norm)

    def fn_irfft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return self._call(mx.fft.irfft, x, n, axis, norm)

    # MLX lacks the two of Hermitian sequences; by definition they are the others, conjugated and scaled the other way.

    def fn_hfft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return self._call(mx.fft.irfft, mx.conj(x, stream=self.stream), n, axis, _OPPOSITE[norm])

    def fn_ihfft(self, x: mx.array, n: int | None, axis: int, norm: str) -> mx.array:
        return mx.conj(self._call(mx.fft.rfft, x, n, axis, _OPPOSITE[norm]), stream=self.stream)
