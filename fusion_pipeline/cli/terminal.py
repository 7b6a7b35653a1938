"""What the command shows: our own messages, each on its own lines, and nobody else's."""

import logging
import sys

logger = logging.getLogger("fusion_pipeline")


class Terminal(logging.Handler):
    """Our own messages: progress to stdout, failures to stderr, each on its own lines alone.

    Args:
        debug: show the traceback of a failure as well.
    """

    def __init__(self, *, debug: bool = False) -> None:
        super().__init__(logging.INFO)
        self._debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        text = record.getMessage()
        if self._debug and record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        stream.write(text.rstrip("\n") + "\n")
        stream.flush()


def log_to_terminal(*, debug: bool) -> None:
    """Our messages, and nobody else's."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.addHandler(Terminal(debug=debug))


def quiet() -> None:
    """Keep the libraries' messages off the terminal."""
    # without any handler, logging would print a library's warning as a last resort
    logging.getLogger().addHandler(logging.NullHandler())
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)


__all__ = ["Terminal", "log_to_terminal", "logger", "quiet"]
