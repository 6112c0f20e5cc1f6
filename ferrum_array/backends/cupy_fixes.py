"""The fix table of CUDA storage: every function that CuPy has otherwise than the standard or NumPy, with the reason.

What is not in ``FIXES`` is CuPy's own function through the body that NumPy shares (``shared.py``). array-api-compat is
not used: its import costs more than NumPy's, and it fixes none of what stands here.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FIXES", "READS_BACK"]

_BITS = "sorted and searched by the bits: CuPy's radix sort puts NaNs with a sign first"
_SINGULAR = "CuPy returns numbers without meaning unless told to report what cuSOLVER reports"

#: function -> why it is not CuPy's
FIXES: Final[dict[str, str]] = {
    "full": "CuPy fills with memset wherever value == 0, which loses the sign of -0.0",
    "eye": "CuPy writes ones through a diagonal view, which has no bfloat16 path",
    "linspace": "CuPy has no complex ends; the same steps as NumPy's give the same bits",
    "floor_divide": "CuPy floors the rounded quotient: 1 // 0.1 is 10 there, 9 in Python",
    "remainder": "CuPy subtracts a rounded multiple, which loses all digits of large quotients and the sign of zero",
    "bitwise_left_shift": "shifts by the width or more have no meaning in C++",
    "bitwise_right_shift": "shifts by the width or more have no meaning in C++",
    "pow": "integers to negative powers are an error as on NumPy; complex: whole powers exactly, powers of 0",
    "nextafter": "CuPy flushes float32 below the normal numbers, and has other answers for infinities in 16 bits",
    "divide": "complex: CuPy's formula overflows, and loses infinities and signs of zero",
    "reciprocal": "complex: as for divide",
    "sign": "complex: CuPy makes NaN of an infinite part",
    "exp": "complex: a zero imaginary part keeps its sign",
    "expm1": "complex: a zero imaginary part keeps its sign",
    "log": "complex: an infinite part with a NaN has an infinite logarithm",
    "log2": "complex: CuPy divides by a complex number, which makes NaN of infinities",
    "log10": "complex: an infinite part with a NaN has an infinite logarithm",
    "log1p": "complex: adding 1 first loses the sign of a zero imaginary part",
    "tan": "complex: infinite and NaN arguments as the standard has them, through tanh",
    "tanh": "complex: infinite and NaN arguments as the standard has them",
    "acosh": "complex: 0 + NaN j has the imaginary part pi/2",
    "round": "complex numbers are rounded by parts; CuPy scales by powers of ten",
    "conj": "real numbers are their own conjugate; CuPy copies",
    "total": "CuPy's ufuncs have no such reduction; 16-bit floats are added in float32 by one kernel",
    "sum": "without axes nothing is to be added; 16-bit floats are added in float32 by one kernel",
    "prod": "short products are taken in order, so that 0 * overflow is NaN where it is for NumPy",
    "max": "CuPy starts from the least finite number, so an infinity alone is lost; NaN wins",
    "min": "CuPy starts from the greatest finite number, so an infinity alone is lost; NaN wins",
    "all": "without axes nothing is to be combined",
    "any": "without axes nothing is to be combined",
    "count_nonzero": "without axes nothing is to be counted together",
    "var": "the divisor is a Python number: CuPy would launch kernels to compute it",
    "argmax": "CuPy starts from the least finite number at place 1; NaN wins, the first of several",
    "argmin": "CuPy starts from the greatest finite number at place 1; NaN wins, the first of several",
    "sort": _BITS,
    "argsort": _BITS,
    "searchsorted": _BITS,
    "unique_all": "CuPy joins NaNs and its inverse is flat; here by the bits, the first of equals",
    "nonzero": "columns of one array are made arrays of their own",
    "where": "CuPy's where has no bfloat16",
    "take": "CuPy cannot take nothing from an empty axis",
    "take_along_axis": "CuPy cannot take nothing from an empty axis",
    "repeat": "CuPy repeats by numbers on the host only",
    "flip": "a view by slices, for any axes",
    "roll": "CuPy copies shifts to the device; two slices do",
    "diagonal": "axes counted from the front, which every version takes",
    "getitem": "CuPy wraps indices that are out of bounds; masks of any shape and Python booleans as NumPy has them",
    "setitem": "CuPy wraps indices that are out of bounds; masks take values that broadcast",
    "matmul": "see cupy_blas.py: CuPy widens float16 stacks and refuses bfloat16 ones",
    "einsum": "pairs go through matmul, so 16-bit floats stay 16-bit and meet the tensor cores",
    "vecdot": "in the dtype of the operands",
    "cholesky": _SINGULAR,
    "inv": _SINGULAR,
    "solve": _SINGULAR + "; operands as they lie in memory",
    "eigh": _SINGULAR + "; nor does it refuse what is not finite",
    "eigvalsh": _SINGULAR + "; nor does it refuse what is not finite",
    "eig": _SINGULAR,
    "eigvals": _SINGULAR,
    "svd": _SINGULAR,
    "svdvals": _SINGULAR,
    "qr": "empty matrices are left to NumPy, which has no elements to compute then",
    "det": "the exponential of a logarithm is taken in float64",
    "slogdet": "empty matrices are left to NumPy, which has no elements to compute then",
    "fft": "empty tensors are left to NumPy, which has no elements to compute then",
    "ifft": "as for fft: empty tensors are left to NumPy",
    "rfft": "as for fft: empty tensors are left to NumPy",
    "irfft": "as for fft; cuFFT takes the imaginary parts that must be zero into account",
    "hfft": "as for fft; cuFFT takes the imaginary parts that must be zero into account",
    "ihfft": "as for fft: empty tensors are left to NumPy",
}

_SHAPE = "the size of the result depends on the values"
_REPORT = "whether cuSOLVER succeeded"
_BOUNDS = "whether an index is out of bounds"

#: function -> (most device-to-host copies of a few bytes in one call, what is read); all others make none
READS_BACK: Final[dict[str, tuple[int, str]]] = {
    "nonzero": (1, _SHAPE),
    "unique_all": (1, _SHAPE),
    "repeat": (1, _SHAPE),
    "getitem": (2, f"with integer tensors, {_BOUNDS}; with a mask, the size of the result"),
    "setitem": (2, f"with integer tensors, {_BOUNDS}; with a mask, how many elements are set"),
    "pow": (1, "whether an integer exponent is negative"),
    **dict.fromkeys(("cholesky", "inv", "solve", "eig", "eigvals", "svd", "svdvals"), (2, _REPORT)),
    **dict.fromkeys(("eigh", "eigvalsh"), (4, f"{_REPORT}; before, whether the matrices are finite")),
}
