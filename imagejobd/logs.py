"""The daemon's own log: one line per event on stderr, `key=value`, for the journal and for people.

The journal keeps a time of its own, and takes a line's priority from its start (sd-daemon(3)).
"""

import logging
import os
import sys

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor, WrappedLogger

# Priorities of syslog(3) by structlog's names of levels, which are those of `logging` in lower case.
PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}


def configure() -> None:
    """Set up structlog, and bring what libraries log to the same stream. Called once, at start."""
    is_journal = _goes_to_journal()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(is_journal=is_journal))
    logging.getLogger("aiohttp.server").addFilter(_is_about_us)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    times: list[Processor] = [] if is_journal else [structlog.processors.TimeStamper(fmt="iso", utc=True)]
    priorities: list[Processor] = [_with_priority] if is_journal else []  # after what renders the event as a line
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *times,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
            *priorities,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _goes_to_journal() -> bool:
    """Whether stderr is the stream that systemd connected to the journal, and has not been redirected since
    (systemd.exec(5), `$JOURNAL_STREAM`)."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def _with_priority(_: WrappedLogger, level: str, text: EventDict | str) -> str:
    """Each line is an entry of its own in the journal."""
    return "\n".join(f"<{PRIORITIES.get(level, 5)}>{line}" for line in str(text).split("\n"))


class _Formatter(logging.Formatter):
    """For what libraries log, with its traceback."""

    def __init__(self, *, is_journal: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return _with_priority(None, record.levelname.lower(), text) if self._is_journal else text


def _is_about_us(record: logging.LogRecord) -> bool:
    """Not what clients do: one that speaks no HTTP, or goes away, could fill the journal with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | ConnectionError)
