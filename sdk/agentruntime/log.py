"""Structured logs: one JSON object a line, the trace's ids in each, for structlog and the standard library alike.

What a key calls a secret, and credentials in any text, are left out of every line.
"""

import logging
import sys
from typing import Any, TextIO

import structlog

from agentruntime import redaction, trace

# At DEBUG these tell of every wait and every health check, which is no news of whoever asked for DEBUG.
_CHATTY = ("asyncio", "grpc")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def configure(level: str = "INFO", *, stream: TextIO | None = None, **fields: Any) -> None:
    """Sends all logging of this process to `stream` (stderr if None), with `fields` in every line."""

    def add_context(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for key, value in fields.items():
            event.setdefault(key, value)
        if context := trace.current.get():
            event.setdefault("trace_id", context.trace_id)
            event.setdefault("span_id", context.span_id)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _method, event: redaction.by_name(event),
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel("INFO" if level == "DEBUG" else logging.NOTSET)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Any:
    """A structlog logger: `log.info("worker ready", worker_id=…)`."""
    return structlog.stdlib.get_logger(name)
