"""What Ctrl-C does while a command runs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Ctrl-C ends a command at once, except where it has said that it will end by itself.

    An interrupt may come within a library that turns it into an error of its own, or loses it, as compilers do. So
    it is remembered here that there was one.

    Attributes:
        asked: whether there was an interrupt; set it to False to go on.
    """

    def __init__(self) -> None:
        self.asked = False
        self._patient = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice interrupts in a ``with`` block; where the process ignores them, or in another thread, nothing."""
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not usual or threading.current_thread() is not threading.main_thread():
            yield
            return
        told = sys.unraisablehook
        signal.signal(signal.SIGINT, self._notice)
        sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, KeyboardInterrupt) else told(lost)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = told

    def wait(self) -> None:
        """From now on only remember the first interrupt, for who looks at :attr:`asked`; another one ends at once."""
        self._patient = True

    def hurry(self) -> None:
        """From now on an interrupt ends what is done at once."""
        self._patient = False

    def _notice(self, number: int, frame: FrameType | None) -> Any:
        again, self.asked = self.asked, True
        if again or not self._patient:
            raise KeyboardInterrupt
