"""The command `kernelmux`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .errors import KernelmuxError
from .program import gateway_environment, gateway_program

# The exit status of a program that Ctrl-C ended.
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="kernelmux", description="JupyterLab whose kernels keep running.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lab = commands.add_parser(
        "lab",
        help="start JupyterLab with the kernels that are still running",
        description="Starts JupyterLab and, if it is not running, the gateway in the background. "
        "Further arguments are passed to JupyterLab, such as a folder or --port 9999.",
        allow_abbrev=False,
    )
    lab.add_argument("--no-browser", action="store_true", help="do not open a browser")
    commands.add_parser("status", help="list the kernels", description="Lists the kernels.")
    stop = commands.add_parser(
        "stop", help="end the kernels", description="Lists the kernels, and ends them, the gateway and JupyterLab."
    )
    stop.add_argument("--yes", action="store_true", help="do not ask")
    # `--help` is passed to the gateway.
    commands.add_parser("gateway", help="run the gateway's program with further arguments", add_help=False)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["gateway"]:
            run_gateway(arguments[1:])
        options, rest = parser().parse_known_args(arguments)
        if options.command == "lab":
            return lab([*(["--no-browser"] if options.no_browser else []), *rest])
        if rest:
            parser().error(f"unknown arguments: {' '.join(rest)}")
        return stop(confirmed=options.yes) if options.command == "stop" else status()
    except KernelmuxError as error:
        print(f"kernelmux: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def run_gateway(args: list[str]) -> None:
    """Replaces this process with the gateway's program."""
    program = str(gateway_program())
    os.execve(program, [program, *args], gateway_environment())


# Each command imports its module when it runs, because importing JupyterLab takes a second.


def lab(args: list[str]) -> int:
    from .lab import run_lab

    run_lab(args)
    return 0


def stop(*, confirmed: bool) -> int:
    from .stop import run_stop

    return run_stop(confirmed=confirmed)


def status() -> int:
    from .status import run_status

    return run_status()


if __name__ == "__main__":
    sys.exit(main())
