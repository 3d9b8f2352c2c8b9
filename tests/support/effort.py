"""How long the tests that make up their own cases look for a fault."""

from __future__ import annotations

_more = False


def look_longer() -> None:
    """Let ``effort`` choose the long search; ``--all`` does."""
    global _more
    _more = True


def effort(usual: int, long: int) -> int:
    """Return a number of cases: ``usual``, or ``long`` with ``--all``."""
    return long if _more else usual
