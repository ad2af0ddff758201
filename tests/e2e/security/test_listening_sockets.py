"""What a server listens on, and what may be read of it in the file system."""

import stat
from pathlib import Path
from typing import Any

import psutil
import pytest


def connections(pid: int) -> list[Any]:
    """All sockets of a process and its children."""
    process = psutil.Process(pid)
    return [
        connection
        for member in [process, *process.children(recursive=True)]
        for connection in member.net_connections(kind="all")
    ]


def test_nothing_listens_but_http(server: Any) -> None:
    found = connections(server.process.pid)
    inet = [one for one in found if one.status == psutil.CONN_LISTEN and not isinstance(one.laddr, str)]
    addresses = [f"http://{one.laddr.ip}:{one.laddr.port}" for one in inet]
    assert addresses == [server.url]
    for one in found:
        path = Path(one.laddr) if isinstance(one.laddr, str) and one.laddr.startswith("/") else None
        if path is not None and path.exists():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0, path


def test_udp_and_raw_sockets_are_not_used(server: Any) -> None:
    import socket

    kinds = {one.type for one in connections(server.process.pid)}
    assert kinds <= {socket.SOCK_STREAM}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_for_strangers_without_a_key_does_not_start(start_server: Any, host: str) -> None:
    with pytest.raises(AssertionError, match="no API key is set"), start_server("--host", host):
        pass
