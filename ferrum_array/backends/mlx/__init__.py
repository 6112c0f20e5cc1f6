"""MLX storage: an adapter that gives MLX the standard's semantics, and a table of what MLX leaves to the host.

MLX is lazy and functional: an operation makes a node of a graph, and an array object is a handle whose contents
``x[key] = value`` replaces. So two handles never see each other's writes; only an object that two tensors hold must
be copied before one of them writes, and that copy moves no memory. What the adapter adds:

* ``elementwise``, ``arrays``, ``selection``, ``reductions``, ``products``, ``transforms``: the raw functions, with
  MLX's gaps filled;
* ``visits``: the one table of functions that are computed on the host, by NumPy storage, and why;
* ``window``: an upper limit for the number of operations that wait to be computed.
"""

from __future__ import annotations

from ferrum_array.backends.mlx.storage import MlxBackend, indices, make

__all__ = ["MlxBackend", "indices", "make"]
