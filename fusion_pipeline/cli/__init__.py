"""The command ``fusion-pipeline``: arguments in, exit code out, no logic between."""

import argparse
import sys
from collections.abc import Sequence

from fusion_pipeline import __version__
from fusion_pipeline.cli import apply, demo, evaluate, export, run, train
from fusion_pipeline.cli.arguments import Parser
from fusion_pipeline.cli.process import run_command

# The heavy imports stand inside the functions: the help comes at once, and library warnings that
# are raised on import find the filter in place.

_DESCRIPTION = (
    "Register, harmonize and fuse the CT, MR, PET and SPECT of one patient. Each command has its "
    "own --help. Research only; not a medical device."
)
_COMMANDS = (run, apply, train, evaluate, demo, export)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        0: done; 1: some cases failed; 2: bad arguments or bad input; 3: see ``run``.
    """
    try:
        args = _parsed(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    return run_command(args)


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


__all__ = ["main"]
