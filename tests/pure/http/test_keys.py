"""API keys and the file that lists them."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.http.auth import KeyRing
from quire.entrypoints.http.keys import KeyFile, digest_of, keys_of_command_line, new_key, read_keys, show_digest
from quire.errors import AuthenticationError, ConfigError
from quire.testing.clock import VirtualClock


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps(list(entries)))
    path.chmod(0o600)
    return path


def entry(name: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "key_sha256": show_digest(key), **fields}


def test_a_file_in_yaml_says_what_keys_may_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"""
- name: alice
  key_sha256: {show_digest("secret")}
  models: [small]
  requests_per_minute: 60
  tokens_per_minute: 10000
  max_concurrency: 4
  priority: 1
  weight: 2.5
  cache_group: team
- name: bob
  key_sha256: {show_digest("other").removeprefix("sha256:").upper()}
"""
    )
    alice, bob = read_keys(path)
    assert (alice.name, alice.digest, alice.models) == ("alice", digest_of(b"secret"), ("small",))
    assert (alice.requests_per_minute, alice.tokens_per_minute, alice.max_concurrency) == (60, 10000, 4)
    assert (alice.priority, alice.weight, alice.cache_group) == (1, 2.5, "team")
    assert (bob.digest, bob.models, bob.requests_per_minute, bob.weight) == (digest_of(b"other"), None, None, 1.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"name": "a"}', "Expected `array`"),
        ('[{"name": "a"}]', "key_sha256"),
        ('[{"name": "a", "key": "secret"}]', "key"),
        ('[{"name": "a b", "key_sha256": "' + "0" * 64 + '"}]', r"\$\[0\].name"),
        ('[{"name": "a", "key_sha256": "123"}]', "key_sha256"),
        ('[{"name": "a", "key_sha256": "' + "0" * 64 + '", "request_per_minute": 3}]', "request_per_minute"),
        ('[{"name": "a", "key_sha256": "' + "0" * 64 + '", "requests_per_minute": 0}]', "requests_per_minute"),
        ('[{"name": "a", "key_sha256": "' + "0" * 64 + '", "weight": 0}]', "weight"),
        ('[{"name": "a", "key_sha256": "' + "0" * 64 + '", "weight": NaN}]', "weight"),
        ("[" * 100_000, "not JSON"),
        ("[", "not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason) as failure:
        read_keys(path)
    assert failure.value.param == "api_keys"


def test_a_name_and_a_key_stand_for_one_holder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same name"):
        read_keys(write(tmp_path / "k.json", entry("a", "1"), entry("a", "2")))
    with pytest.raises(ConfigError, match="the same key_sha256"):
        read_keys(write(tmp_path / "k.json", entry("a", "1"), entry("b", "1")))


def test_a_key_written_into_the_file_by_mistake_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("- name: a\n  key: sk-private\n :: [")
    with pytest.raises(ConfigError) as failure:
        read_keys(path)
    assert "sk-private" not in str(failure.value)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    clock = VirtualClock()
    path = write(tmp_path / "keys.json", entry("a", "one"))
    ring = KeyRing(file=KeyFile(path, clock=clock), clock=clock)
    account = ring.check("Bearer one")
    write(path, entry("a", "one", requests_per_minute=5), entry("b", "two"))
    with pytest.raises(AuthenticationError):
        ring.check("Bearer two")
    clock.advance(1.0)
    assert ring.check("Bearer two") is not None
    again = ring.check("Bearer one")
    assert again is account is not None
    assert again.key.requests_per_minute == 5
    write(path, entry("b", "two"))
    clock.advance(1.0)
    with pytest.raises(AuthenticationError, match="invalid"):
        ring.check("Bearer one")
    write(path)
    clock.advance(1.0)
    with pytest.raises(AuthenticationError, match="invalid"):
        ring.check("Bearer two")


@pytest.mark.parametrize("damage", ["{", None])
def test_a_broken_file_keeps_the_keys_from_before(
    tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock()
    path = write(tmp_path / "keys.json", entry("a", "one"))
    ring = KeyRing(file=KeyFile(path, clock=clock), clock=clock)
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    for _ in range(3):
        clock.advance(1.0)
        assert ring.check("Bearer one") is not None
    assert caplog.text.count("the keys from before stay in force") == 1


def test_the_file_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    ring = KeyRing(file=KeyFile(write(tmp_path / "k.json", entry("a", "one")), clock=clock), clock=clock)
    looks = []
    monkeypatch.setattr(KeyFile, "_look", lambda self: looks.append(1) or self._signature)
    for _ in range(100):
        clock.advance(0.03)
        ring.check("Bearer one")
    assert len(looks) in (2, 3)


def test_who_else_can_read_the_file_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "keys.json", entry("a", "one"))
    KeyFile(path)
    assert not caplog.text
    os.chmod(path, 0o644)
    KeyFile(path)
    assert "chmod 600" in caplog.text


def test_an_empty_file_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = KeyRing(file=KeyFile(write(tmp_path / "keys.json")))
    assert ring.is_required
    with pytest.raises(AuthenticationError):
        ring.check("Bearer anything")
    assert caplog.records[0].levelno == logging.WARNING


def test_keys_of_a_group_share_prefixes_and_others_do_not(tmp_path: Path) -> None:
    path = write(
        tmp_path / "keys.json",
        entry("a", "1", cache_group="team"),
        entry("b", "2", cache_group="team"),
        entry("c", "3", cache_group="other"),
        entry("d", "4"),
    )
    salts = [key.cache_salt for key in [*read_keys(path), *keys_of_command_line(["5"])]]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4


def test_new_keys_differ_and_have_256_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 for key in keys)
