"""A running server as `quire chat` and `quire complete` reach it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from quire.config.option import option
from quire.errors import AuthenticationError, ConfigError, EngineError, InvalidRequestError, QuireError

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Which server to talk to."""

    url: str = option("http://127.0.0.1:8000/v1", basic=True, help="Where the server's API begins.")
    model_name: str | None = option(None, basic=True, help="Name of the model; default is the first one served.")
    api_key: str | None = option(
        None, basic=True, help="Key to send; default is QUIRE_API_KEY or OPENAI_API_KEY from the environment."
    )
    quick: str | None = option(None, basic=True, aliases=("-q",), help="Send this one text, show the answer and end.")
    stats: bool = option(False, help="Show after each answer how long it took.")


class ServerConnection:
    """Calls to one server. Use it as a context manager.

    Args:
        url: Where its API begins, with or without `/v1`'s slash at the end.
        api_key: Sent as a bearer token; None sends none.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def first_model(self) -> str:
        """The name of the first model that the server lists.

        Raises:
            QuireError: The server cannot be reached, refuses, or lists none.
        """
        with _clear_errors(self._url):
            response = self._client.get(f"{self._url}/models")
        _raise_refusal(response)
        models = response.json().get("data") or []
        if not models:
            raise ConfigError(f"{self._url} lists no model", hint="name one with --model-name")
        return str(models[0]["id"])

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Sends a request and yields the events of its stream.

        Raises:
            QuireError: The server cannot be reached, refuses, or ends the stream with an error.
        """
        with (
            _clear_errors(self._url),
            self._client.stream("POST", f"{self._url}{path}", json=body | {"stream": True}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
            _raise_refusal(response)
            for line in response.iter_lines():
                if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
                    yield _checked_event(json.loads(data))


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Turns what goes wrong on the way to a server into our errors."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        hint = "start one with `quire serve`, or name another with --url"
        raise ConfigError(f"no server answers at {url}", hint=hint) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigError(f"{url!r} is not a URL: {error}", param="url") from error
    except httpx.HTTPError as error:
        raise EngineError(f"the connection to {url} broke: {error}") from error


def _checked_event(event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        raise EngineError(_message_of(event) or "the server ended the answer with an error")
    return event


def _raise_refusal(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    try:
        message = _message_of(response.json())
    except ValueError:
        message = ""
    text = f"the server answered {response.status_code}: {message or response.text[:200]}"
    raise _error_class(response.status_code)(text)


def _error_class(status: int) -> type[QuireError]:
    if status == httpx.codes.UNAUTHORIZED:
        return AuthenticationError
    return InvalidRequestError if status < httpx.codes.INTERNAL_SERVER_ERROR else EngineError


def _message_of(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")
