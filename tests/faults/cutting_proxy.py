"""A loopback proxy in front of a database server that cuts the line after COMMIT: the database has it, nobody hears so."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class CuttingProxy:
    """Takes connections on a port of ``127.0.0.1`` and passes them on to the Unix socket *target*.

    While it is *armed*, a COMMIT passes to the server, its answer is waited for, and instead of the answer comes the end.
    Every second one, so that what is tried again gets in. Not those that SQLAlchemy sends to MariaDB after it has set an
    isolation level: nothing is committed by them, and with them every second one could be the same batch's for ever.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.armed = False
        self.cuts = 0
        self._commits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._target)
            before = b""
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is client:
                        if self.armed and _is_commit(data) and b"ISOLATION LEVEL" not in before:
                            self._commits += 1
                            if self._commits % 2:
                                server.sendall(data)
                                server.recv(65536)
                                self.cuts += 1
                                return
                        before = data
                    (server if ready is client else client).sendall(data)


def _is_commit(data: bytes) -> bool:
    """Whether a client says COMMIT, to PostgreSQL or to MariaDB."""
    return b"COMMIT\0" in data or data.endswith(b"COMMIT")
