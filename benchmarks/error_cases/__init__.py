"""Cases of the ops, for ``benchmarks.ops_error``: each draws a call and gives its results beside the exact ones."""
