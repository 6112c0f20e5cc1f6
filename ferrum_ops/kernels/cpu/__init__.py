"""Kernels for NumPy storage, compiled by numba at their first use: the extra ``cpu``."""
