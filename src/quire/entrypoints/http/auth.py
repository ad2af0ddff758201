"""Who may use the server.

The check is a dependency of the whole application, so it runs on the route that was matched: there is no list of
protected path prefixes that an oddly written path could slip by, and a new route needs a key unless it is listed
as open. Paths that match no route need one as well, so that nobody without a key learns which routes there are.
"""

import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quire.config.server import ServerConfig
from quire.entrypoints.http.errors import error_response
from quire.entrypoints.http.keys import ApiKey, KeyFile, digest_of, keys_of_command_line
from quire.entrypoints.http.quota import Account, RateLimit
from quire.entrypoints.http.served_request import served_request_of
from quire.errors import AuthenticationError, ConfigError, NotAllowedError, OverloadedError, QuireError
from quire.types.outputs import RequestOutput
from quire.types.request import GenerationRequest
from quire.types.stats import EngineStats

HINT = "send the header `Authorization: Bearer <key>`, or `x-api-key: <key>`"

FAILURES_PER_MINUTE = 30
MAX_ADDRESSES = 4096
MAX_TRUSTED_KEYS = 64


@dataclass(slots=True)
class _Address:
    """What came from one client address: failures, and keys that were good."""

    failures: RateLimit
    trusted: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class FailureThrottle:
    """Slows down those who try keys, by the address they come from.

    An address with too many failures has no further key looked at until some time has passed; but one that it
    used with success before is: behind one proxy, who guesses keys does not lock out those who have one. The table
    is bounded, what was not used for longest is forgotten, and addresses of IPv6 count by their /64.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def check(self, address: str, digest: bytes) -> None:
        """Refuses to look at a key.

        Raises:
            OverloadedError: Too many keys from there were wrong.
        """
        known = self._addresses.get(_network(address))
        if known is None or digest in known.trusted:
            return
        if wait := known.failures.wait_seconds(1, self._clock()):
            raise OverloadedError("too many wrong API keys came from your address", retry_after_seconds=wait)

    def note_failure(self, address: str) -> None:
        """A wrong key came from there."""
        self._entry(address).failures.take(1, self._clock())

    def note_success(self, address: str, digest: bytes) -> None:
        """A good key came from there."""
        trusted = self._entry(address).trusted
        trusted[digest] = None
        trusted.move_to_end(digest)
        if len(trusted) > MAX_TRUSTED_KEYS:
            trusted.popitem(last=False)

    def _entry(self, address: str) -> _Address:
        network, table = _network(address), self._addresses
        if network not in table:
            table[network] = _Address(RateLimit(FAILURES_PER_MINUTE, self._clock()))
            if len(table) > MAX_ADDRESSES:
                table.popitem(last=False)
        table.move_to_end(network)
        return table[network]


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


class KeyRing:
    """The accepted keys, as digests only, and the accounts of their holders. Observes the engine to settle these.

    Args:
        keys: Those that never change.
        file: Those that may.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, keys: Sequence[ApiKey] = (), file: KeyFile | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = list(keys)
        self._file = file
        self._clock = clock
        self._throttle = FailureThrottle(clock)
        self._accounts: dict[str, Account] = {}
        self._by_digest: list[tuple[bytes, Account]] = []
        self._configure()

    @property
    def is_required(self) -> bool:
        """Whether a key is needed. A file of keys without any lets nobody in."""
        return bool(self._fixed) or self._file is not None

    def check(self, authorization: str | None, x_api_key: str | None = None, address: str = "") -> Account | None:
        """Finds the account of who sends these headers; None where no key is needed.

        Raises:
            AuthenticationError: A key is needed and this is none.
            OverloadedError: Too many wrong keys came from `address`.
        """
        if not self.is_required:
            return None
        if self._file is not None and self._file.poll():
            self._configure()
        given = _given_key(authorization, x_api_key)
        if not given:
            raise AuthenticationError("missing API key", hint=HINT)
        digest = digest_of(given.encode("latin-1"))
        self._throttle.check(address, digest)
        account = None
        # Every digest is compared, so that the time does not tell which one matched.
        for known, holder in self._by_digest:
            if hmac.compare_digest(digest, known):
                account = holder
        if account is None:
            self._throttle.note_failure(address)
            raise AuthenticationError("invalid API key", hint=HINT)
        self._throttle.note_success(address, digest)
        return account

    def on_finished(self, output: RequestOutput, request: GenerationRequest) -> None:
        """Settles the account of a request that has ended."""
        account = self._accounts.get(request.tenant)
        if account is not None:
            num_tokens = len(request.prompt_token_ids) + sum(len(answer.token_ids) for answer in output.outputs)
            account.settle(request.request_id, num_tokens)

    def on_stats(self, stats: EngineStats) -> None:
        """Of no interest here."""

    def _configure(self) -> None:
        """Brings the accounts up to date with the keys. Who stays keeps what was used."""
        keys = [*self._fixed, *(self._file.keys if self._file is not None else ())]
        for key in keys:
            if key.name in self._accounts:
                self._accounts[key.name].configure(key)
            else:
                self._accounts[key.name] = Account(key, self._clock)
        names = {key.name for key in keys}
        self._accounts = {
            name: account for name, account in self._accounts.items() if name in names or account.num_running
        }
        self._by_digest = [(key.digest, self._accounts[key.name]) for key in keys]


def make_key_ring(server: ServerConfig, scheduling_policy: str) -> KeyRing:
    """The keys of a server's settings.

    Raises:
        ConfigError: The file of keys cannot be used.
    """
    fixed = keys_of_command_line(server.api_key)
    names = {key.name for key in fixed}

    def check(keys: Sequence[ApiKey]) -> None:
        for key in keys:
            if key.priority and scheduling_policy != "priority":
                raise ConfigError(
                    f"the key {key.name!r} has priority {key.priority}, and the scheduler knows none",
                    hint="--scheduling-policy priority",
                    param="api_keys",
                )
            if key.name in names:
                raise ConfigError(f"the name {key.name!r} belongs to a key of --api-key", param="api_keys")

    return KeyRing(fixed, KeyFile(Path(server.api_keys), check) if server.api_keys is not None else None)


def _given_key(authorization: str | None, x_api_key: str | None) -> str:
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return (x_api_key or "").strip()


def key_check(
    keys: KeyRing, open_endpoints: Collection[Any], operator_endpoints: Collection[Any] = ()
) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets a request pass with a good key, or to one of `open_endpoints`.

    What goes on in the whole server is for operators: from the counters of the prefix cache, read before and after a
    request, others could learn whether somebody else has sent its prompt.

    It leaves in the request's state: `account` and `key_name`, None without keys, and `key_salt`.
    """

    async def check_key(request: Request) -> None:
        if request.scope["endpoint"] in open_endpoints:
            return
        account = _account_of(request, keys)
        state = request.state
        state.account = account
        state.key_name = account.key.name if account else None
        state.key_salt = account.key.cache_salt if account else ""
        if account is None:
            return
        if request.scope["endpoint"] in operator_endpoints and not account.key.operator:
            raise NotAllowedError("this is for operators of the server", hint="use a key that is marked as operator")
        if request.method == "POST":
            account.count_request()

    return check_key


def hide_routes(app: FastAPI, keys: KeyRing) -> None:
    """Makes paths and methods that match no route need a key as well. To be called after the error handlers are."""
    tell: Any = app.exception_handlers[HTTPException]

    async def on_http_error(request: Request, error: Exception) -> Response:
        if not hasattr(request.state, "account"):
            try:
                _account_of(request, keys)
            except QuireError as refusal:
                served_request_of(request).error = refusal
                return error_response(refusal, request.state.request_id)
        response: Response = await tell(request, error)
        return response

    app.add_exception_handler(HTTPException, on_http_error)


def _account_of(request: Request, keys: KeyRing) -> Account | None:
    headers, client = request.headers, request.client
    address = client.host if client is not None else ""
    return keys.check(headers.get("authorization"), headers.get("x-api-key"), address)
