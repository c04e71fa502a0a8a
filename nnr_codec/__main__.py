"""The commands, as `python -m nnr_codec encode …`, decode, info, diff, eval."""

from __future__ import annotations

import importlib
import sys

from . import __version__

_COMMANDS = {
    "encode": "encode",
    "decode": "decode",
    "info": "info",
    "diff": "diff",
    "eval": "evaluate",
}
"""The modules of the commands, by their names."""


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; return the exit code."""
    usage = f"usage: python -m nnr_codec {{{','.join(_COMMANDS)}}} …"
    if arguments[:1] == ["--version"]:
        print(f"nnr_codec {__version__}")
        return 0
    if arguments[:1] in (["-h"], ["--help"]):
        names = ", ".join(f"nnr-{name}" for name in _COMMANDS)
        print(f"{usage}\n\nThe same as the commands {names}.")
        return 0
    if not arguments or arguments[0] not in _COMMANDS:
        print(usage, file=sys.stderr)
        return 2
    command = importlib.import_module(f"nnr_codec.cli.{_COMMANDS[arguments[0]]}")
    return int(command.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
