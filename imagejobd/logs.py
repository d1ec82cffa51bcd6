"""The daemon's own log: one line an event on stderr, `key=value`, for the journal and for people."""

import logging
import sys

import structlog
from aiohttp.http_exceptions import HttpProcessingError


def configure() -> None:
    """Set up structlog, and bring what libraries log to the same stream. Called once, at start."""
    logging.getLogger("aiohttp.server").addFilter(_is_our_affair)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _is_our_affair(record: logging.LogRecord) -> bool:
    """Not what is no HTTP, and not clients that go away: they could fill the journal with a traceback each."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError | ConnectionError)
