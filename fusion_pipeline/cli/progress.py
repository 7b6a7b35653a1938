"""Where a run is: a line for each stage on stderr, with the seconds since the command began."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

logger = logging.getLogger("fusion_pipeline.progress")
_TICK_S = 1.0
_CLEAR = "\r\x1b[2K"  # back to the start of the line, and empty it


class Progress(logging.Handler):
    """Shows the stages that `pipeline.Clock` announces.

    On a terminal the line of the running stage counts its seconds. Elsewhere, and where several
    processes share a run, each stage is one plain line when it begins.

    Args:
        stream: where to; None: stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(logging.DEBUG)
        self._stream = sys.stderr if stream is None else stream
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self._live = alone and self._stream.isatty()
        self._begin = time.monotonic()
        self._text = ""
        self._since = self._begin
        self._ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """A stage begins (``INFO``), or ends (``DEBUG``)."""
        self.show(record.getMessage() if record.levelno >= logging.INFO else "")

    def show(self, text: str) -> None:
        """End the line of the stage before, and begin one; nothing begins where ``text`` is empty.

        Args:
            text: such as ``case01: register mr_t1``.
        """
        with self.lock or threading.RLock():
            self._finish()
            self._text, self._since = text, time.monotonic()
            if text:
                self._write(text if self._live else f"{text}\n")
                self._count()

    def close(self) -> None:
        """Leave a whole line behind."""
        self._finish()
        super().close()

    def _finish(self) -> None:
        """Stop counting; the line stays, with the seconds of its stage."""
        self._ended.set()
        if self._live and self._text:
            seconds = time.monotonic() - self._since
            self._write(f"{self._text}, {seconds:.1f} s\n", again=True)
        self._text = ""

    def _count(self) -> None:
        """Rewrite the line each second until the stage ends; on a terminal alone."""
        if not self._live:
            return
        ended, text = threading.Event(), self._text
        self._ended = ended

        def tick() -> None:
            while not ended.wait(_TICK_S):
                self._write(text, again=True)

        threading.Thread(target=tick, daemon=True).start()

    def _write(self, text: str, *, again: bool = False) -> None:
        """One line with the time, over the last one or below it."""
        elapsed = f"{time.monotonic() - self._begin:6.0f} s  "
        self._stream.write(f"{_CLEAR if again else ''}{elapsed}{text}")
        self._stream.flush()


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[None]:
    """Show the stages of what runs inside.

    Args:
        quiet: show nothing.
    """
    before = logger.level, logger.propagate
    logger.propagate = False  # the lines are not among the messages of the run
    logger.setLevel(logging.CRITICAL if quiet else logging.DEBUG)
    handler = Progress()

    def end_line(_: logging.LogRecord) -> bool:
        handler.show("")
        return True

    messages = [*logging.getLogger("fusion_pipeline").handlers]
    for other in messages:
        other.addFilter(end_line)  # a message starts on a line of its own
    logger.addHandler(handler)
    try:
        yield
    finally:
        for other in messages:
            other.removeFilter(end_line)
        handler.close()
        logger.removeHandler(handler)
        level, logger.propagate = before
        logger.setLevel(level)


__all__ = ["Progress", "shown_progress"]
