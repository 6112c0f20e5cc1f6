"""Kernels for CuPy storage."""
