"""The command ``fusion-pipeline``: arguments in, exit code out, no logic between."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import shtab

from fusion_pipeline import __version__
from fusion_pipeline.cli import apply, demo, evaluate, export, info, run, train
from fusion_pipeline.cli.arguments import Parser
from fusion_pipeline.cli.process import run_command

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

# The heavy imports stand inside the functions: the help comes at once, and library warnings that
# are raised on import find the filter in place.

_DESCRIPTION = (
    "Register, harmonize and fuse the CT, MR, PET and SPECT of one patient. Each command has its "
    "own --help. Research only; not a medical device."
)
_COMMANDS = (run, apply, train, evaluate, export, demo, info)


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
    _add_completion(parser, commands)
    args = parser.parse_args(argv)
    if args.check is not None:
        args.check(args)
    return args


def _add_completion(parser: Parser, commands: "Commands") -> None:
    """``--print-completion SHELL``; options that take a file or folder complete its name."""
    shtab.add_argument_to(parser, help="print what completes commands in a shell, and leave")
    paths = {"PATH": shtab.FILE, "FOLDER": shtab.DIRECTORY, "DATALIST": shtab.FILE}
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in paths:
                action.complete = paths[action.metavar]  # type: ignore[attr-defined]


__all__ = ["main"]
