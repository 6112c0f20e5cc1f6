"""Functions in Triton's language; what launches them stands in the package above."""
