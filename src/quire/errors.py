"""Every error that quire raises on purpose.

The tree has two branches: what the caller can mend, and what we must.

    QuireError
    ├── CallerError                     the caller's fault: HTTP 4xx, or a refusal to start
    │   ├── InvalidRequestError         a request that breaks a rule (400), also a ValueError
    │   │   ├── ParameterError          one field breaks its rule; carries the field and its value
    │   │   └── PromptTooLongError      prompt and answer do not fit the context
    │   ├── AuthenticationError         missing or unknown key (401)
    │   ├── NotAllowedError             a key that may not do this (403)
    │   ├── ModelNotFoundError          a model name this server does not serve (404)
    │   ├── OverloadedError             a bounded queue is full (429), with a time to wait
    │   ├── DeadlineError               a request took longer than it was allowed to (408)
    │   ├── ConfigError                 options that contradict each other or the machine
    │   │   └── InsufficientMemoryError model and KV cache do not fit; carries what would
    │   └── CheckpointError             a model folder or file that cannot be used
    │       ├── CheckpointNotFoundError
    │       ├── CorruptCheckpointError  truncated, out of bounds, or not what it says it is
    │       ├── UnsupportedModelError   an architecture or format that we do not know
    │       └── TensorMismatchError     a tensor is missing, superfluous or has the wrong shape
    └── EngineError                     our fault: HTTP 5xx
        ├── EngineDeadError             the engine process is gone
        ├── EngineProtocolError         a message between our own processes does not parse
        ├── RequestFailedError          one request failed inside the engine; the others go on
        └── StepFailedError             a step could not be run; its sequences fail, the engine goes on
"""

from typing import Any


class QuireError(Exception):
    """An error with a text for people.

    Args:
        message: What happened, with the numbers.
        hint: What to do about it; shown on its own line.
        param: Path of the field at fault (``messages[1].content``), None where no field is.
    """

    http_status = 500

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class CallerError(QuireError):
    """The caller can mend this."""

    http_status = 400


class InvalidRequestError(CallerError, ValueError):
    """A request that breaks a rule of the API."""


class ParameterError(InvalidRequestError):
    """A field breaks its rule. The text reads "<field> must be <rule>, got <value>".

    Args:
        parameter: Name of the field.
        rule: What the value must be ("in (0, 1]").
        value: What was given; its repr is cut to 100 characters in the text.
    """

    def __init__(self, parameter: str, rule: str, value: Any, *, hint: str | None = None) -> None:
        shown = repr(value)
        if len(shown) > 100:
            shown = shown[:97] + "..."
        super().__init__(f"{parameter} must be {rule}, got {shown}", hint=hint, param=parameter)
        self.parameter = parameter
        self.value = value


class PromptTooLongError(InvalidRequestError):
    """The prompt, or the prompt with the tokens asked for, exceeds the context."""


class AuthenticationError(CallerError):
    """No key, or a key that is not known."""

    http_status = 401


class NotAllowedError(CallerError):
    """A good key, but not for this."""

    http_status = 403


class ModelNotFoundError(CallerError):
    """The request names a model that is not served here."""

    http_status = 404


class OverloadedError(CallerError):
    """A bounded queue is full.

    Args:
        retry_after_seconds: When trying again has a chance.
        reason: Which bound it was, in a word for metrics.
    """

    http_status = 429

    def __init__(
        self, message: str, *, retry_after_seconds: float, hint: str | None = None, reason: str = "queue_full"
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason


class DeadlineError(CallerError):
    """A request was not answered within the time that its sender gave it."""

    http_status = 408


class ConfigError(CallerError, ValueError):
    """Options that cannot work together or on this machine."""


class InsufficientMemoryError(ConfigError):
    """Weights, activations and the smallest useful KV cache do not fit the device."""


class CheckpointError(CallerError):
    """A model that cannot be loaded; the text names the file and, where there is one, the tensor."""


class CheckpointNotFoundError(CheckpointError):
    """Nothing was found under the given model name or path."""


class CorruptCheckpointError(CheckpointError):
    """A file that is truncated, points outside itself, or is malformed."""


class UnsupportedModelError(CheckpointError):
    """An architecture, quantisation or option of a model that quire does not implement."""


class TensorMismatchError(CheckpointError):
    """A tensor is missing, unknown or has the wrong shape."""


class EngineError(QuireError):
    """Something failed on our side."""


class EngineDeadError(EngineError):
    """The engine process has ended; no request that it held can continue."""

    http_status = 503


class EngineProtocolError(EngineError):
    """A message between the front end and the engine does not parse."""


class RequestFailedError(EngineError):
    """One request failed inside the engine. Other requests are not affected."""


class StepFailedError(EngineError):
    """A step could not be run. Its sequences fail; later steps can run."""
