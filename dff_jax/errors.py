"""The one error that means: the input is wrong, not the program."""

from __future__ import annotations

from unicodedata import category


class InputError(ValueError):
    """Bad input: its message is one line that names the file or field and says what to do.

    The command line prints it and leaves with status 2; nothing has been written by then.
    """

    everywhere = False  # whether all processes of a run end with it

    def __init__(self, message: object):
        super().__init__(one_line(message, None))  # it may quote a file


class ConfigError(InputError):
    """A configuration field that does not exist, or holds a value that it may not hold."""


class UntrustedCode(ConfigError):
    """A file names code outside this package that the user did not name."""


class WeightsError(InputError):
    """A weights file that cannot be read, or that belongs to another architecture."""


class SourceError(InputError):
    """A source of data with something missing or damaged. `problems` names it all, a line each."""

    def __init__(self, name: str, source: object, problems: tuple[str, ...]):
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            message = f"{source}: {len(self.problems)} problems, all named above; mend them and repeat the command"
        super().__init__(f"{name}: {message}")


def one_line(error: object, most: int | None = 160) -> str:
    """The text of an error as one `printable` line, cut after `most` characters (None: whole)."""
    return printable(" ".join(str(error).split()))[:most] or type(error).__name__


def printable(text: object) -> str:
    """Text from files, to show or to write as UTF-8: escaped is what a terminal would obey (control characters, marks
    of the direction of writing, line breaks) and what no encoding has (bytes of file names that are no text)."""
    return "".join(c.encode("unicode_escape").decode() if category(c) in _ESCAPED else c for c in str(text))


_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
