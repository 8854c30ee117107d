"""The one error a user of the command line sees: a single line that says what, where, and what would do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input (a file, a table, a config, a name). The command line prints it as one line and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to end an error message with: the nearest known name, or the list of them all."""
    known = sorted(known)
    match = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known) or 'none'}"


def first_few(items: Iterable, shown: int = 3) -> str:
    """``a, b, c and 7 more``: enough of a long list to act on, in one line."""
    items = [str(item) for item in items]
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
