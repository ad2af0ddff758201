"""What a command shows on the terminal beside its output: log lines and errors."""

import logging
import sys
import traceback

from quire.entrypoints.log_format import log_formatter
from quire.errors import CallerError, QuireError

EXIT_OUR_FAULT = 1
EXIT_CALLER = 2


def configure_logging(level: str, kind: str = "text") -> None:
    """Sends log lines to standard error from `level` upwards, as "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_formatter(kind, "%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "asyncio", "filelock"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


def report_error(error: QuireError) -> int:
    """Shows an error and its hint; the trace only where the log is at debug level.

    Returns:
        The exit code: 2 for what the caller can mend, 1 for what we must.
    """
    if logging.getLogger("quire").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return EXIT_CALLER if isinstance(error, CallerError) else EXIT_OUR_FAULT
