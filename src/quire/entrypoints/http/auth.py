"""API keys.

The check is a dependency of the whole application, so it runs on the route that was matched: there is no list of
protected path prefixes that an oddly written path could slip by, and a new route needs a key unless it is listed
as open.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from fastapi import Request

from quire.errors import AuthenticationError

HINT = "send the header `Authorization: Bearer <key>`"


class KeyRing:
    """The accepted keys, as digests only."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def check(self, authorization: bytes | None) -> str:
        """Checks an `Authorization` header.

        Returns:
            The cache salt of the key: holders of different keys do not share cached prefixes. Empty without keys.

        Raises:
            AuthenticationError: There are keys and this is none of them.
        """
        if not self._digests:
            return ""
        if authorization is None:
            raise AuthenticationError("missing API key", hint=HINT)
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        # Every digest is compared, so that the time does not tell which one matched.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise AuthenticationError("invalid API key", hint=HINT)
        return hashlib.sha256(b"quire cache salt" + given).hexdigest()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def key_check(keys: KeyRing, open_endpoints: Collection[Any]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets a request pass with a good key, or to one of `open_endpoints`."""

    async def check_key(request: Request) -> None:
        if request.scope["endpoint"] not in open_endpoints:
            authorization = request.headers.get("authorization")
            request.state.key_salt = keys.check(None if authorization is None else authorization.encode("latin-1"))

    return check_key
