"""The command ``fusion-pipeline``: arguments in, exit code out, no logic between."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from fusion_pipeline import __version__
from fusion_pipeline.cli import demo, export, run, train
from fusion_pipeline.cli.arguments import Parser
from fusion_pipeline.cli.terminal import log_to_terminal, logger, quiet

# The heavy imports stand inside the functions: the help comes at once, and library warnings that
# are raised on import find the filter in place.

_DESCRIPTION = (
    "Register, harmonize and fuse the CT, MR, PET and SPECT of one patient. Each command has its "
    "own --help. Research only; not a medical device."
)
_COMMANDS = (run, train, demo, export)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        0: done; 1: some cases failed; 2: bad arguments or bad input.
    """
    try:
        args = _parsed(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    log_to_terminal(debug=args.debug)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet()
        return _exit_code_of(args)


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments; each command knows its own."""
    parser = Parser(prog="fusion-pipeline", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    names = " | ".join(module.__name__.rpartition(".")[2] for module in _COMMANDS)
    commands = parser.add_subparsers(title="commands", required=True, metavar=names)
    for module in _COMMANDS:
        module.add_command(commands, argv)
    args = parser.parse_args(argv)
    if args.check is not None:
        args.check(args)
    return args


def _exit_code_of(args: argparse.Namespace) -> int:
    """Run the command; whatever it raises becomes one line on stderr."""
    from fusion_pipeline.data import InputError

    try:
        return int(args.command(args))
    except InputError as error:
        logger.error("%s", " ".join(str(error).split()), exc_info=error)
        return 2
    except KeyboardInterrupt:
        logger.error(args.interrupted)
        return 130
    except Exception as error:
        text = " ".join(str(error).split())
        logger.error("unexpected %s: %s", type(error).__name__, text, exc_info=error)
        return 1


__all__ = ["main"]
