"""``scripts/demo``: the example app with a provider to talk to and people who use it.

Starts a played provider and the app as processes of their own, and drives the app through its pages. With
``OPENAI_API_KEY`` or ``ANTHROPIC_API_KEY`` in the environment, that SDK talks to the real provider instead.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

ROOT = Path(__file__).resolve().parent.parent
PORT = 5080

QUESTIONS = {
    "ada@northwind.example": ["Why do my brakes squeak?", "When can I bring my bicycle in for its first service?"],
    "ben@northwind.example": ["The frame has the wrong size, what now?"],
    "chloe@juniper.example": ["Which breads are free of nuts?", "Do you open on Sunday?", "Can a cake be vegan?"],
    "dan@juniper.example": ["How early do I have to order a cake with a name on it?"],
}
LETTERS = {
    "ada@northwind.example": "The brakes squeak since the service in May. I cleaned the rims with oil, it is worse now. "
    * 8,
    "chloe@juniper.example": "We would like to order forty buns for the school's summer party, some without nuts. " * 5,
}
SEARCHES = {"ben@northwind.example": "send a bicycle back", "dan@juniper.example": "order a cake with a name"}


class DemoError(Exception):
    """The demo cannot go on; the message says why, and where to look."""


class Browser:
    """Somebody signed in to the app: cookies, forms, redirects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        return self._open(path, None)

    def post(self, path: str, **form: str) -> str:
        return self._open(path, urlencode(form).encode())

    def _open(self, path: str, data: bytes | None) -> str:
        with self._opener.open(self._url + path, data, timeout=120) as page:
            return page.read().decode()


def environment(state: Path, provider: str) -> dict[str, str]:
    """The environment of the app: state in files under *state*, SDKs at the played *provider* where no real key is set."""
    host = provider.removeprefix("http://")
    given = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    env = given | {
        "FLASK_APP": "example",
        "FLASK_SECRET_KEY": _secret(state / "secret_key"),
        "FLASK_SQLALCHEMY_DATABASE_URI": f"sqlite:///{state / 'desk.db'}",
        "FLASK_LLM_COST_SPOOL_DIR": str(state / "spool"),
        "FLASK_LLM_COST_HOSTS": json.dumps({f"{host}/{name}": name for name in ("openai", "anthropic", "in_house")}),
        "FLASK_TRIAGE_URL": f"{provider}/in_house/v1",
        "NO_PROXY": ",".join(filter(None, [given.get("NO_PROXY") or given.get("no_proxy"), "127.0.0.1"])),
        "PYTHONUNBUFFERED": "1",
    }
    env["no_proxy"] = env["NO_PROXY"]
    if not given.get("OPENAI_API_KEY"):
        env |= {"OPENAI_API_KEY": "played", "OPENAI_BASE_URL": f"{provider}/openai/v1"}
    if not given.get("ANTHROPIC_API_KEY"):
        env |= {"ANTHROPIC_API_KEY": "played", "ANTHROPIC_BASE_URL": f"{provider}/anthropic"}
    return env


def _secret(file: Path) -> str:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex())
    return file.read_text()


@contextmanager
def process(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own session, so that Ctrl-C reaches it only through us. Asked to end as by Ctrl-C, then made to."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def flask(env: dict[str, str], *arguments: str) -> str:
    """The output of one ``flask`` command."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"flask {' '.join(arguments)} failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(child: subprocess.Popen[bytes], log: Path, url: str) -> None:
    """Until the app answers."""
    for _ in range(300):
        if child.poll() is not None:
            break
        try:
            Browser(url).get("/login")
            return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    raise DemoError(f"The app did not start; {log} says why.")


def played_provider(state: Path, stack: ExitStack) -> str:
    """Start the played provider; its address."""
    log = state / "provider.log"
    log.unlink(missing_ok=True)
    command = ["-m", "flask_llm_cost.testing.provider", "--truth-log", str(state / "truth.jsonl"), "--pace", "0.02"]
    child = stack.enter_context(process(command, log))
    for _ in range(300):
        if child.poll() is None and (lines := log.read_text().splitlines()):
            return lines[0]
        time.sleep(0.1)
    raise DemoError(f"The played provider did not start; {log} says why.")


def visit(url: str, email: str, *, real: bool) -> int:
    """Everything one person does, and how many answers that took. With real providers, less of it."""
    browser = Browser(url)
    browser.post("/login", email=email, password="demo")
    questions = QUESTIONS[email][: 1 if real else None]
    for question in questions:
        browser.post("/chat", question=question)
    answers = len(questions)
    if letter := LETTERS.get(email):
        browser.post("/summarize", text=letter)
        answers += 1
    if query := SEARCHES.get(email):
        browser.get("/search?" + urlencode({"q": query}))
        answers += 1
    return answers


def free_port(wanted: int) -> int:
    """*wanted* where it is free, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):  # taken, or no port at all
                continue
            return int(probe.getsockname()[1])
    raise DemoError("No free port on 127.0.0.1.")


def demo(state: Path, *, once: bool, port: int) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--state {state}: {error.strerror}") from None
    with ExitStack() as stack:
        env = environment(state, played_provider(state, stack))
        real = [name for name in ("OPENAI", "ANTHROPIC") if os.environ.get(f"{name}_API_KEY")]
        print(f"Talking to the real {' and '.join(real).title()}." if real else "No API key is set: the provider is played.")
        flask(env, "db", "upgrade")
        flask(env, "seed")

        log = state / "app.log"
        with ExitStack() as serving:
            url = f"http://127.0.0.1:{free_port(port)}"
            child = serving.enter_context(process(["-m", "flask", "run", "--port", url.rsplit(":", 1)[1]], log, env))
            wait_for(child, log, url)
            print("People use the app: they chat, sum up letters, search ...")
            with ThreadPoolExecutor() as pool:
                answers = sum(pool.map(lambda email: visit(url, email, real=bool(real)), QUESTIONS))
            print(f"{answers} answers. The morning digest runs from the command line ...")
            flask(env, "digest")
            if not once:
                print(SERVING.format(url=url), flush=True)
                child.wait()
                raise DemoError(f"The app ended by itself; {log} says why.")
        for arguments in ([], ["--by", "tag:tenant_id,tag:feature"]):
            print("\n$ flask", "llm-cost", "report", *arguments)
            print(flask(env, "llm-cost", "report", *arguments), end="")


SERVING = """
  The app            {url}/
  All spend          {url}/llm-costs/   sam@desk.example, password demo (staff)
  A tenant's own     {url}/my-usage/    ada@northwind.example, password demo (customer)

Ctrl-C ends it."""


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _stop(*_: object) -> None:
    for name in ENDING:  # what is being ended is not interrupted again
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="The example app, with traffic.")
    parser.add_argument("--once", action="store_true", help="print the report and end")
    parser.add_argument("--port", type=int, default=PORT, help=f"of the app; {PORT}, or any free one")
    parser.add_argument("--state", type=Path, default=ROOT / ".demo", help="folder of its database and logs; .demo")
    options = parser.parse_args()
    for name in ENDING:
        signal.signal(name, _stop)
    try:
        demo(options.state.resolve(), once=options.once, port=options.port)
    except KeyboardInterrupt:
        print("\nStopped.")
    except (DemoError, HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
