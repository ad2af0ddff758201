"""Log lines as JSON: one object per line, whatever a message contains."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

FIELDS = "fields"
"""Name of the attribute under which a log record carries values of its own: `extra={FIELDS: {...}}`."""


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, the record's own fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end. Control characters and all but ASCII are escaped, so it is one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields: Mapping[str, Any] | None = getattr(record, FIELDS, None)
        if fields is None:
            line["message"] = record.getMessage()
        else:
            line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_formatter(kind: str, text_format: str, date_format: str | None = None) -> logging.Formatter:
    """The formatter of `kind`, "text" or "json".

    Args:
        kind: Which.
        text_format: The format of lines of text.
        date_format: And that of their times.
    """
    return JsonFormatter() if kind == "json" else logging.Formatter(text_format, date_format)
