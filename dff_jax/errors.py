"""The one error that means: the input is wrong, not the program."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: its message is one line that names the file or field and says what to do.

    The command line prints it and leaves with status 2; nothing has been written by then.
    """


class ConfigError(InputError):
    """A configuration field that does not exist, or holds a value that it may not hold."""


class WeightsError(InputError):
    """A weights file that cannot be read, or that belongs to another architecture."""
