"""A command in this process: its messages on the terminal, its exit code."""

import argparse
import warnings

from fusion_pipeline import __version__
from fusion_pipeline.cli.progress import logger as progress
from fusion_pipeline.cli.progress import shown_progress
from fusion_pipeline.cli.terminal import log_to_terminal, logger, quiet


def run_command(args: argparse.Namespace) -> int:
    """Run the command that the arguments name.

    Args:
        args: with ``command``, which takes them and returns its exit code.

    Returns:
        0: done; 1: some cases failed; 2: bad input; 3: done, and a registration is doubtful
        (``--fail-on-check``).
    """
    log_to_terminal(debug=args.debug)
    with shown_progress(quiet=args.quiet), warnings.catch_warnings():
        if args.speaks:
            progress.info("fusion-pipeline %s: loading libraries", __version__)
        warnings.simplefilter("ignore")
        quiet()
        return _exit_code_of(args)


def _exit_code_of(args: argparse.Namespace) -> int:
    """Run the command; whatever it raises becomes one line on stderr."""
    from fusion_pipeline.data import InputError
    from fusion_pipeline.data.refusals import is_memory_error, no_memory

    try:
        return int(args.command(args))
    except InputError as error:
        logger.error("%s", " ".join(str(error).split()), exc_info=error)
        return 2
    except KeyboardInterrupt:
        logger.error(args.interrupted)
        return 130
    except Exception as error:
        if is_memory_error(error):
            logger.error("%s", no_memory(), exc_info=error)
            return 1
        text = " ".join(str(error).split())
        logger.error("unexpected %s: %s", type(error).__name__, text, exc_info=error)
        return 1


__all__ = ["run_command"]
