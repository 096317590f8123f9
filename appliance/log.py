"""One log line an event, on stderr, where systemd's journal or a terminal picks it up."""

from __future__ import annotations

import logging
import os
import sys

_SYSLOG = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Line(logging.Formatter):
    """`level room: message`; under systemd with its `<N>` priority and no time of our own."""

    def __init__(self, *, for_journal: bool) -> None:
        super().__init__("%(name)s: %(message)s")
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("appliance.", "", 1)
        if self._for_journal:
            mark = f"<{_SYSLOG.get(record.levelname, 6)}>"
            return "\n".join(mark + line for line in text.splitlines())
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {text}"


def set_up_logging(level: str) -> None:
    """Log to stderr from `level` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(for_journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # "1 change detected", at info
