"""Why P2L does not decide a request: one word for headers and counters, one sentence for the log."""

from __future__ import annotations

from p2l_plugins.errors import P2LError


class NotRoutedError(P2LError):
    """P2L does not decide this request, for a reason that counters, logs and the header `x-p2l-error` name.

    Attributes:
        reason: one word.
        detail: a sentence for the log, without any text of the prompt.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
