"""What the bodies of all requests for answers have in common, whatever their API.

Fields that are not declared pass unread (clients send bookkeeping such as `user` or `metadata`), unless they would
have shaped the answer: see `refusals.py`. A field that is null counts as left out. The declared bounds are also what
`/openapi.json` says.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from quire.errors import ParameterError
from quire.types.sampling import SamplingParams

LARGEST_INT = 2**31 - 1
MAX_TIMEOUT_SECONDS = 86_400.0
TIMEOUT_HEADER = "x-request-timeout"


def _integral(value: Any) -> Any:
    """JavaScript and JSON Schema know no difference between 1 and 1.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_integral)
"""Goes behind the bounds of an integer: in front of them it would hide them from `/openapi.json`."""

Count = Annotated[int, Field(ge=0, le=LARGEST_INT), WHOLE]
CountOrAll = Annotated[int, Field(ge=-1, le=LARGEST_INT), WHOLE]
TokenId = Annotated[int, Field(ge=0, le=LARGEST_INT)]
"""In lists that may be long, where a Python function per entry would hold up all streams."""


class RequestBody(BaseModel):
    """A request for answers. `Call` reads it, checks it, and asks it for sampling parameters."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="A name under which the model is served."
    )
    stream: bool | None = Field(None, description="Answer with events as tokens come.")
    stream_interval: Annotated[int, Field(ge=1, le=LARGEST_INT), WHOLE] | None = Field(
        None, description="Tokens per event of a stream; may only raise the server's own value."
    )
    priority: Annotated[int, Field(ge=-LARGEST_INT, le=LARGEST_INT), WHOLE] | None = Field(
        None, description="Lower runs first, under the priority policy."
    )
    cache_salt: Annotated[str, Field(pattern=r"^[^@/\\\x00]{1,128}$")] | None = Field(
        None, description="Shares cached prefixes only with equal salts of the same key."
    )
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] | None = Field(
        None, description="Seconds until the answer must be complete; also the header X-Request-Timeout."
    )
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = Field(
        None, description="Tail of the answer's id; the header X-Request-Id goes first."
    )

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            InvalidRequestError: Naming the field at fault.
        """

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` with what the request says.

        Raises:
            ParameterError: Naming the field, its rule and the value.
        """
        raise NotImplementedError

    def field_names(self) -> Mapping[str, str]:
        """The request's name of a sampling parameter, where it is another one."""
        return {}


def read_timeout(text: str | None) -> float | None:
    """What the header X-Request-Timeout says, in seconds; None without it.

    Raises:
        ParameterError: It is no such time.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ParameterError("X-Request-Timeout", f"a number of seconds in (0, {MAX_TIMEOUT_SECONDS:g}]", text)
    return seconds
