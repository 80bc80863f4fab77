"""One logging set-up for all processes: events with fields, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog


class _StandardError:
    """Standard error as it is when something is written: who took its place since is heard, too."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_STANDARD_ERROR = cast("TextIO", _StandardError())


def configure_logging(*, level: str = "INFO", as_json: bool = False) -> None:
    """Send every log line of this process to standard error; JSON for machines, else aligned text."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
    ]
    if as_json:
        last: structlog.typing.Processor = structlog.processors.JSONRenderer()
    else:
        last = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default shows local variables, and those may hold keys and tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=_STANDARD_ERROR),
    )
    logging.basicConfig(
        level=logging.WARNING, stream=_STANDARD_ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger; write `log.info("unit settled", unit_key=…, verdict=…)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
