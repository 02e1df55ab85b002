"""Connections by which the ranks of a job learn within seconds that one of them has ended, which one, and why.

A collective operation notices that a process is gone only where it was about to hear from it, cannot say which rank it
was, and may wait for half an hour. So every rank keeps a connection to rank 0, which the operating system closes when
a process ends, however it ends; rank 0 tells the others. A rank that cannot come out of what it waits for is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

GRACE = 3.0  # seconds for a rank to come out of a collective by itself
SAVING = 120.0  # seconds for a checkpoint that is being written
CONNECT = 10.0  # seconds to reach rank 0
_KEY = "starfire-lifeline"


class Store(Protocol):
    """The part of the interface of torch's stores that is used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


class LostPeer(NamedTuple):
    """A rank that has ended, and what it said before; "" where it said nothing."""

    rank: int
    why: str


class Lifeline:
    """This rank's end of the connections.

    Args:
        rank: its number.
        line: what to print before this process is ended because of another.
    """

    def __init__(self, rank: int, line: Callable[[], str]) -> None:
        self.rank = rank
        self.lost: LostPeer | None = None
        self._line = line
        self._noticed, self._left = threading.Event(), threading.Event()
        self._saving = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._server: socket.socket | None = None
        self._token = ""

    def open(self, store: Store, host: str) -> None:
        """Connect to rank 0 at `host`. Where that cannot be, nothing is lost but the quick notice."""
        if self.rank == 0:
            self._token = secrets.token_hex(16)
            self._server = _listening()
            store.set(_KEY, json.dumps([self._server.getsockname()[1], self._token]))
        else:
            port, self._token = json.loads(store.get(_KEY))
            try:
                self._sockets[0] = connection = socket.create_connection((host, port), timeout=CONNECT)
                connection.settimeout(None)
                _keep_alive(connection)
                _send(connection, token=self._token, rank=self.rank)
            except OSError:
                return
        own = weakref.WeakMethod(self._close)
        # A worker process that outlives its rank must not keep the connection open.
        os.register_at_fork(after_in_child=lambda: (method := own()) and method())
        threading.Thread(target=self._watch, name="starfire-lifeline", daemon=True).start()

    def leave(self, why: str | None = None) -> None:
        """Part from the others: in agreement, or because of `why`."""
        if self._left.is_set():
            return
        self._left.set()
        for connection in list(self._sockets.values()):
            if why is None:
                _send(connection, bye=True)
            else:
                _send(connection, ended=self.rank, why=why)
        self._close()

    def cause(self, patience: float) -> LostPeer | None:
        """The rank that has ended, if it is known within `patience` seconds; else None."""
        if self._sockets or self.lost:
            self._noticed.wait(patience)
        return self.lost

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """While this lasts, the end of another rank does not end this one."""
        with self._saving:
            yield

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            if self._server is not None:
                selector.register(self._server, selectors.EVENT_READ, _Peer(-1))
            for rank, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, _Peer(rank))
            while not self._left.is_set() and not self._noticed.is_set():
                with contextlib.suppress(OSError, ValueError):  # closed by `leave`
                    for key, _ in selector.select(timeout=0.5):
                        self._hear(selector, key.fileobj, key.data)
        if self._noticed.is_set() and not self._left.wait(GRACE):
            self._end()

    def _hear(self, selector: selectors.BaseSelector, connection: Any, peer: _Peer) -> None:
        if self._server is not None and connection is self._server:
            new, _ = self._server.accept()
            new.setblocking(False)
            _keep_alive(new)
            selector.register(new, selectors.EVENT_READ, _Peer(-1))
            return
        try:
            data = connection.recv(2**16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.text += data
        *lines, peer.text = peer.text.split(b"\n")
        for line in lines:
            self._told(connection, peer, line)
        if not data:
            selector.unregister(connection)
            if peer.rank < 0 or peer.through:
                connection.close()
            else:
                self._notice(LostPeer(peer.rank, ""))

    def _told(self, connection: socket.socket, peer: _Peer, line: bytes) -> None:
        try:
            said = dict(json.loads(line))
        except ValueError:
            return
        if peer.rank < 0:
            if secrets.compare_digest(str(said.get("token")), self._token):
                peer.rank = int(said["rank"])
                self._sockets[peer.rank] = connection
        elif "ended" in said:
            self._notice(LostPeer(int(said["ended"]), str(said.get("why", ""))))
        elif said.get("bye"):
            peer.through = True

    def _notice(self, lost: LostPeer) -> None:
        if self.lost is not None or self._left.is_set():
            return
        self.lost = lost
        self._noticed.set()
        if self.rank == 0:
            for rank, connection in list(self._sockets.items()):
                if rank != lost.rank:
                    _send(connection, ended=lost.rank, why=lost.why)

    def _end(self) -> None:
        """End this process: its main thread waits for somebody who is no more, or works for nobody."""
        held = self._saving.acquire(timeout=SAVING)
        if held and self._left.wait(0.2):
            return
        print(f"error: {self._line()}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(1)

    def _close(self) -> None:
        for connection in [*self._sockets.values(), *([self._server] if self._server else [])]:
            with contextlib.suppress(OSError):
                connection.close()


class _Peer:
    """The rank at the other end of a connection (-1: not said yet), and whether it has taken its leave."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.through = False
        self.text = b""


def _listening() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _send(connection: socket.socket, **said: object) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(said).encode() + b"\n")


def _keep_alive(connection: socket.socket) -> None:
    """A machine that has lost its power or its network closes nothing: it is given up after half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
