"""A whole server for the tests, and a proxy that cuts connections."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = os.environ.get("ORCHESTRA_PROGRAM", str(ROOT / "target/debug/orchestra"))


class House:
    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(ROOT / "clients/server.py"), PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = json.loads(self._line())
        self.url: str = said["url"]
        self.admin_key: str = said["adminKey"]

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, "the server did not start"
        return line

    def tell(self, command: str) -> None:
        """`kill` or `start`."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{command}\n")
        self._child.stdin.flush()
        self._line()

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


class Cutter:
    """Passes connections on to a server; cuts each of the first ones after so many bytes of answers."""

    def __init__(self, url: str, limits: Sequence[int]) -> None:
        parts = urlsplit(url)
        self._far = (parts.hostname or "", parts.port or 80)
        self._limits = list(limits)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            limit = self._limits[self.connections] if self.connections < len(self._limits) else None
            self.connections += 1
            far = socket.create_connection(self._far)
            threading.Thread(target=self._pass, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, limit), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        seen = 0
        try:
            while data := source.recv(65536):
                if limit is not None and seen + len(data) >= limit:
                    # In the middle of whatever this is, and with a reset.
                    target.sendall(data[: limit - seen])
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                seen += len(data)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
