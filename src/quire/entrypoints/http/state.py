"""What the endpoints share. Everything that lives as long as the server is in here."""

from dataclasses import dataclass, field

from fastapi import FastAPI, Request

from quire.config.server import ServerConfig
from quire.entrypoints.http.activity import Activity
from quire.entrypoints.http.answer_formats import AnswerFormats
from quire.entrypoints.http.metrics import ServerMetrics
from quire.entrypoints.http.quota import Account
from quire.entrypoints.http.response_store import ResponseStore
from quire.errors import ModelNotFoundError
from quire.frontend.async_engine import AsyncEngine


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server.

    Attributes:
        model_names: Names under which the model is served; the first is shown in answers.
        created: When the server started, in seconds since the epoch.
        formats: How the model writes tool calls and reasoning.
        stored_responses: Those that `/v1/responses` keeps.
    """

    engine: AsyncEngine
    config: ServerConfig
    model_names: list[str]
    metrics: ServerMetrics
    created: int
    activity: Activity = field(default_factory=Activity)
    formats: AnswerFormats = field(default_factory=AnswerFormats)
    stored_responses: ResponseStore = field(default_factory=lambda: ResponseStore(0, 0))

    def names_for(self, request: Request) -> list[str]:
        """The names that the holder of a request's key may use."""
        account: Account | None = request.state.account
        allowed = account.key.models if account is not None else None
        return [name for name in self.model_names if allowed is None or name in allowed]

    def check_model(self, name: str | None, request: Request) -> str:
        """The name to show in the answer; a request may leave it out.

        Raises:
            ModelNotFoundError: It is served under other names, or not to the holder of this key.
        """
        names = self.names_for(request)
        if name is None and names:
            return names[0]
        if name is None or name not in names:
            served = ", ".join(map(repr, names)) or "none for your key"
            raise ModelNotFoundError(
                f"the model {(name or '')[:200]!r} is not served here", hint=f"served are: {served}", param="model"
            )
        return name


def state_of(source: FastAPI | Request) -> ServerState:
    """The state of the server that an application or a request belongs to."""
    app = source if isinstance(source, FastAPI) else source.app
    state: ServerState = app.state.server
    return state
