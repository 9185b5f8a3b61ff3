"""Code of the user's own, named `module:function`: which names may be imported, and from where.

Weights and run folders come from other people too, and to import what they name would run their code. So a name that
stands in a file is refused, unless the user gave the same name to this process: on the command line, in a config
class made in Python (also by a config file), or by `trust`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dff_jax.errors import UntrustedCode, one_line

_trusted: set[str] = set()


def is_own(name: Any) -> bool:
    """Whether `name` leads to code outside this package."""
    return isinstance(name, str) and any(mark in name for mark in ".:")


def trust(*names: Any) -> None:
    """Allows files that are read from now on to name this code, each `module:function`."""
    _trusted.update(filter(is_own, names))


def check_trusted(field: str, name: Any) -> None:
    """Raises UntrustedCode, which says how to allow it, if `name` is code that the user did not name."""
    if is_own(name) and name not in _trusted:
        raise UntrustedCode(
            f"{field}: names code that is not of this package, {one_line(repr(name), 100)}, which was not run; if you "
            f"trust it, add --trust {one_line(shlex.quote(name), 100)} (in Python: dff_jax.config.trust)"
        )


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Puts the working directory at the end of Python's path while the user's own code is imported.

    Not for longer: a module beside somebody's photographs could have the name of one that a library looks for.
    """
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
