"""Which requests are to fail, if one of so many does."""

from __future__ import annotations

from urllib.parse import urlsplit


class EveryNth:
    """
    Picks one request of so many.

    The second start of a flow is spared if the first one was picked, and the next request is picked instead: after two
    starts in doubt, a task fails and names no run, which other tests are about.

    :ivar every: it picks one request of so many; 0 is none.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self._requests = 0
        self._picked_starts: set[str] = set()

    def picks(self, method: str, target: str) -> bool:
        """Count a request, and return whether it is picked."""
        self._requests += 1
        is_turn = self.every > 0 and self._requests % self.every == 0
        path = urlsplit(target).path
        if method == "POST" and path.endswith("/run"):
            if path in self._picked_starts:
                self._picked_starts.remove(path)
                self._requests -= is_turn
                return False
            if is_turn:
                self._picked_starts.add(path)
        return is_turn
