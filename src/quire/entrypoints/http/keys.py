"""API keys: what a key may do, and the file that lists keys.

Keys are known as SHA-256 digests only. A digest of a key made by `quire keys new` tells nothing about the key: it has
256 random bits, so there is nothing to guess and no need for a slow hash.
"""

import contextlib
import hashlib
import json
import logging
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quire.errors import ConfigError

logger = logging.getLogger("quire.keys")

POLL_SECONDS = 1.0
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_KEYS = 10_000
KEY_PREFIX = "qk-"
_DIGEST_PREFIX = "sha256:"

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key, and what its holder may do. None means: no limit.

    Attributes:
        name: Shown in logs and metrics; the tenant of its requests.
        digest: SHA-256 of the key.
        models: Names that its holder sees.
        requests_per_minute: Requests that ask for work, on average; a minute's worth may come at once.
        tokens_per_minute: Tokens of prompts and answers, likewise.
        max_concurrency: Prompts that are being answered at a time.
        priority: Of its requests, under the priority policy; they may lower it and not raise it.
        weight: Its share of the engine relative to others, when there is not enough for all.
        cache_group: Keys of a group share cached prefixes; others share them with nobody.
        operator: May see what the server does for everybody: metrics, load, traces.
    """

    name: str
    digest: bytes
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    priority: int | None = None
    weight: float = 1.0
    cache_group: str | None = None
    operator: bool = False

    @property
    def cache_salt(self) -> str:
        """What separates its cached prefixes from those of others."""
        secret = b"quire cache salt" + self.digest
        if self.cache_group is not None:
            secret = b"quire cache group" + self.cache_group.encode()
        return hashlib.sha256(secret).hexdigest()[:16]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A key as the file has it."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    key_sha256: Annotated[str, msgspec.Meta(pattern=r"^(sha256:)?[0-9a-fA-F]{64}$")]
    models: Annotated[list[str], msgspec.Meta(max_length=1024)] | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_concurrency: Positive | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**31) + 1, le=2**31 - 1)] | None = None
    weight: Annotated[float, msgspec.Meta(ge=0.01, le=100.0)] = 1.0
    cache_group: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    operator: bool = False


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A fresh key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def show_digest(key: str) -> str:
    """The digest of a key as the file has it."""
    return _DIGEST_PREFIX + digest_of(key.encode()).hex()


def keys_of_command_line(keys: Sequence[str]) -> list[ApiKey]:
    """The keys of `--api-key` and QUIRE_API_KEY, operators without limits: "key-1", "key-2" in their order."""
    return [
        ApiKey(name=f"key-{number}", digest=digest_of(key.encode()), operator=True)
        for number, key in enumerate(dict.fromkeys(keys), 1)
    ]


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file: a list in YAML or JSON, see `docs/security.md`.

    Raises:
        ConfigError: It cannot be read, or is not such a list.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(path, f"larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise _refused(path, getattr(error, "strerror", None) or "not UTF-8") from error
    try:
        entries = msgspec.convert(_parse(text, path), Annotated[list[_Entry], msgspec.Meta(max_length=MAX_KEYS)])
    except msgspec.ValidationError as error:
        raise _refused(path, str(error)) from None
    keys = [_key(entry) for entry in entries]
    for attribute in ("name", "digest"):
        values = [getattr(key, attribute) for key in keys]
        if len(set(values)) < len(values):
            raise _refused(path, f"two keys have the same {'name' if attribute == 'name' else 'key_sha256'}")
    return keys


def _refused(path: Path, reason: str) -> ConfigError:
    hint = "a list of entries with name and key_sha256; `quire keys new` makes one"
    return ConfigError(f"the keys of {path} cannot be used: {reason}", hint=hint, param="api_keys")


def _parse(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise _refused(path, "not JSON") from None
    import yaml

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        # The error would quote the file.
        raise _refused(path, "not YAML") from None
    return [] if content is None else content


def _key(entry: _Entry) -> ApiKey:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__ if name != "key_sha256"}
    fields["models"] = None if entry.models is None else tuple(entry.models)
    return ApiKey(digest=bytes.fromhex(entry.key_sha256.removeprefix(_DIGEST_PREFIX)), **fields)


class KeyFile:
    """A file of keys that may change while the server runs.

    Args:
        check: Raises `ConfigError` for keys that this server cannot honour.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        check: Callable[[Sequence[ApiKey]], None] = lambda keys: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._check = check
        self._clock = clock
        self._next_look = clock() + POLL_SECONDS
        self._signature = self._look()
        self.keys: list[ApiKey] = self._read()

    def poll(self) -> bool:
        """Reads the file again if it has changed; looks at most once a second. Broken, it changes nothing.

        Returns:
            Whether `keys` is new.
        """
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + POLL_SECONDS
        signature = self._look()
        if signature == self._signature:
            return False
        self._signature = signature
        try:
            self.keys = self._read()
        except ConfigError as error:
            logger.error("the keys from before stay in force: %s", error.message)
            return False
        logger.info("read %d keys from %s", len(self.keys), self._path)
        return True

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[ApiKey]:
        keys = read_keys(self._path)
        self._check(keys)
        # It may have been replaced since; then it is looked at again within a second.
        with contextlib.suppress(OSError):
            if self._path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                logger.warning("%s can be read or written by every user of this machine; chmod 600 it", self._path)
        if not keys:
            logger.warning("%s has no keys: nobody is let in by it", self._path)
        return keys
