"""The edge at which text reaches a terminal or a pipe.

What is printed holds names, messages and completions of others. Control characters in them (an escape sequence that retitles a window or
hides a line, a carriage return, marks that reverse the reading direction) are shown, not obeyed: ``\\u001b``, as JSON writes them, so
that a line of JSON stays one. And somebody who stops reading (``| head``, a closed terminal) ends the output, never the work.
"""

import contextlib
import errno
import io
import os
import re
from collections.abc import Callable
from typing import Any

from upslope.errors import RunFault

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0 but tabs and newlines, delete, C1, line and paragraph separators, and the marks that change the reading direction."""
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET)
"""What writing says once nobody reads any more: a closed pipe, a terminal that was hung up."""


class OutputClosed(Exception):
    """Nobody reads what is printed any more, and there is nothing else to do."""


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written as ``\\uXXXX``."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Nowhere(io.StringIO):
    """Keeps nothing."""

    def write(self, s: str, /) -> int:
        return len(s)


class Output:
    """A text stream that shows control characters, and goes silent once nobody reads it (or raises :class:`OutputClosed`).

    Args:
        stream: where the text goes; None (a closed standard output) is silence.
        lasting: the work matters more than its output: go on in silence.
        plain: show control characters; False for what draws on a terminal by them.
    """

    def __init__(self, stream: Any, *, lasting: bool = True, plain: bool = True) -> None:
        self.stream, self.lasting, self.plain = stream if stream is not None else Nowhere(), lasting, plain

    def write(self, text: str) -> int:
        shown = printable(text) if self.plain else text
        try:
            self._tried(self.stream.write, shown)
        except UnicodeEncodeError:  # a locale without this character, half a character in a file's name
            encoding = self.stream.encoding or "ascii"
            self._tried(self.stream.write, shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is buffered, as far as somebody reads."""
        self._tried(self.stream.flush)

    def _tried(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            if error.errno not in GONE:
                self.silence()  # said once
                raise RunFault(f"what is printed cannot be written: {error.strerror or error}") from error
            self.silence()
            if not self.lasting:
                raise OutputClosed from error

    def silence(self) -> None:
        """From now on nothing is written; where the stream is a file of the system, what it still buffers goes nowhere either."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            return
        self.stream = Nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def drawn_on(stream: Any) -> Any:
    """The stream for something that draws on a terminal: it still goes silent, but control characters pass."""
    return Output(stream.stream, lasting=True, plain=False) if isinstance(stream, Output) else stream
