"""What the endpoints share. Everything that lives as long as the server is in here."""

from dataclasses import dataclass, field

from fastapi import FastAPI, Request

from quire.config.server import ServerConfig
from quire.entrypoints.http.activity import Activity
from quire.entrypoints.http.metrics import ServerMetrics
from quire.errors import ModelNotFoundError
from quire.frontend.async_engine import AsyncEngine


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server.

    Attributes:
        model_names: Names under which the model is served; the first is shown in answers.
        created: When the server started, in seconds since the epoch.
    """

    engine: AsyncEngine
    config: ServerConfig
    model_names: list[str]
    metrics: ServerMetrics
    created: int
    activity: Activity = field(default_factory=Activity)

    def check_model(self, name: str | None) -> str:
        """The name to show in the answer; a request may leave it out.

        Raises:
            ModelNotFoundError: It is served under other names.
        """
        if name is None:
            return self.model_names[0]
        if name not in self.model_names:
            served = ", ".join(repr(known) for known in self.model_names)
            raise ModelNotFoundError(
                f"the model {name[:200]!r} is not served here", hint=f"served are: {served}", param="model"
            )
        return name


def state_of(source: FastAPI | Request) -> ServerState:
    """The state of the server that an application or a request belongs to."""
    app = source if isinstance(source, FastAPI) else source.app
    state: ServerState = app.state.server
    return state
