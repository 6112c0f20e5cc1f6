"""Progress of long work, shown or told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["Progress", "progressing"]

#: None: a bar if a person may be looking and the work is long; True: a bar; False: nothing;
#: a function: called with (done, total)
Progress = bool | Callable[[int, int], None] | None

_LONG = 200


@contextmanager
def progressing(progress: Progress, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of items just done, for a ``with`` block.

    Bars go to standard error. With None one is shown only where there is a terminal, for more than 200
    items, and only if it can be drawn: that needs the library ``tqdm``.

    Raises:
        ImportError: for True without the library ``tqdm``.

    Examples:
        >>> from ferrum_models.progress import progressing
        >>> with progressing(lambda done, total: print(done, "of", total), 3, "text") as advance:
        ...     advance(2)
        ...     advance(1)
        2 of 3
        3 of 3
    """
    if callable(progress):
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        yield tell
    elif progress or (progress is None and total > _LONG and sys.stderr.isatty() and find_spec("tqdm") is not None):
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError(
                "a progress bar needs the library 'tqdm': pip install 'ferrum[models]', or pass progress=False"
            ) from error
        with tqdm(total=total, unit=unit, file=sys.stderr, leave=False) as bar:

            def draw(count: int) -> None:
                bar.update(count)

            yield draw
    else:
        yield lambda count: None
