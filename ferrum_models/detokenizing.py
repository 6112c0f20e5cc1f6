"""Text from token ids one at a time, in whole characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StreamingDetokenizer"]

_REPLACEMENT = "\ufffd"  # what decoders put for bytes that are no character, or not yet one


class StreamingDetokenizer:
    """Turns ids into text as they come; what it gave so far is always a beginning of the whole text.

    (A decoder with byte fallback rewrites characters that stand before invalid bytes; those that were given stay.)

    A character may take several tokens, and a decoder may treat the first token of a text in its own way. So the
    ids since the last whole character are decoded twice, without and with what is new, and the difference is given
    out once it ends in a whole character. :meth:`flush` gives what is left, incomplete characters as U+FFFD.

    Examples:
        >>> from ferrum_models.detokenizing import StreamingDetokenizer
        >>> stream = StreamingDetokenizer(lambda ids: bytes(ids).decode(errors="replace"))
        >>> [stream.add(i) for i in "größe".encode()], stream.flush()
        (['g', 'r', '', 'ö', '', 'ß', 'e'], '')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # of the ids that are decoded for their context
        self._given = 0  # ids whose text was given out
        self._before = ""  # the text of the ids from _start to _given

    def add(self, token: int) -> str:
        """The text that *token* completes; empty where a character is not whole yet."""
        self._ids.append(token)
        text = self._decode(self._ids[self._start :])
        if text.endswith(_REPLACEMENT):
            return ""
        piece = text[len(self._before) :]
        if piece:
            self._start, self._given = self._given, len(self._ids)
            self._before = self._decode(self._ids[self._start :])
        return piece

    def flush(self) -> str:
        """The text that was held back; the stream then begins anew."""
        text = self._decode(self._ids[self._start :])[len(self._before) :]
        self._ids, self._start, self._given, self._before = [], 0, 0, ""
        return text
