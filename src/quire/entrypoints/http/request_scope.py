"""The outermost layer of the application: the id of a request, what is noted of it, and the answer that nobody
else gave."""

import logging
import re
import secrets
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.entrypoints.http.errors import describe_unexpected, envelope
from quire.entrypoints.http.served_request import SILENT_ROUTES, RequestObserver, ServedRequest

logger = logging.getLogger("quire.http")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestScope:
    """Gives a request its id, notes what becomes of it, sends the id back, and answers what nobody else caught.

    Args:
        observers: Told about every request at its end, but for those of `SILENT_ROUTES`.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[RequestObserver] = ()) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        refused = given is not None and not _REQUEST_ID.fullmatch(given)
        request_id = secrets.token_hex(16) if given is None or refused else given
        served = ServedRequest(scope, request_id)
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, has_own_request_id=given is not None, served=served)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if (account := state.get("account")) is not None:
                    headers.update(account.headers())
            await send(message)

        try:
            await (_refuse_id if refused else self._app)(scope, receive, send_with_id)
        except ClientDisconnect:
            served.client_left = True
            logger.debug("request %s: the client left", request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if served.status is None:
                body = describe_unexpected(request_id)
                await Response(body, 500, media_type="application/json")(scope, receive, send_with_id)
        finally:
            served.end = time.monotonic()
            self._tell(served)
            # It knows the scope: without this, only the garbage collector could free them.
            del state["served"]

    def _tell(self, served: ServedRequest) -> None:
        if served.route in SILENT_ROUTES:
            return
        for observer in self._observers:
            try:
                observer.on_request(served)
            except Exception:
                logger.exception("an observer of requests failed")


async def _refuse_id(scope: Scope, receive: Receive, send: Send) -> None:
    body = envelope(400, "X-Request-Id must be 1 to 128 visible ASCII characters", "X-Request-Id")
    await Response(body, 400, media_type="application/json")(scope, receive, send)
