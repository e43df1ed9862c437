"""Options of commands, read so that a mistake is one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from prunekit.errors import ConfigError, nearest

__all__ = ["read_options"]


def read_options(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse the words of a command line.

    Raises:
        ConfigError: an option that there is not, or a value that it does not take.
    """
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        said = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: (--[\w-]+)", said)
    hint = "" if unknown is None else nearest(unknown[1], re.findall(r"--[\w-]+", parser.format_help()))
    raise ConfigError(f"{said}; see {parser.prog} --help.{hint}")
