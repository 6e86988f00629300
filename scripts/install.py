"""Install packages fast: with uv where it can be had, with pip otherwise. Needs nothing but a Python with pip.

    python scripts/install.py [--into PYTHON] [options and requirements, as for pip install]

Without ``--into`` it installs into the environment that it runs in. uv reads none of pip's settings: what pip is told about
indexes and certificates, in its files or by ``PIP_*``, is handed on. With a setting that uv has no word for, pip does it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: pip's settings and uv's variable for the same. A list is separated by blanks in pip, and by this in uv.
HANDED_ON = {
    "index-url": ("UV_DEFAULT_INDEX", ""),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", ""),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", ""),
    "client-cert": ("SSL_CLIENT_CERT", ""),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "proxy": ("ALL_PROXY", ""),
    "default-timeout": ("UV_HTTP_TIMEOUT", ""),
    "timeout": ("UV_HTTP_TIMEOUT", ""),
}
#: pip's settings that change nothing of what gets installed.
NO_MATTER = {
    "break-system-packages",
    "cache-dir",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-compile",
    "no-input",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "verbose",
}


def pip_settings() -> dict[str, str]:
    """What pip is told in its files and by the environment, which wins, as it does in pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in settings:
            settings[section][name] = str(ast.literal_eval(value))
    return {**settings["global"], **settings["install"], **settings[":env:"]}


def uv_variables(settings: Mapping[str, str]) -> dict[str, str] | None:
    """The same for uv; None where pip is told something that uv would not do."""
    if settings.keys() - HANDED_ON.keys() - NO_MATTER:
        return None
    variables = {}
    for name in settings.keys() & HANDED_ON.keys():
        variable, separator = HANDED_ON[name]
        variables[variable] = separator.join(settings[name].split()) if separator else settings[name]
    if "extra-index-url" in settings or "find-links" in settings:
        variables["UV_INDEX_STRATEGY"] = (
            "unsafe-best-match"  # pip asks all indexes for the newest, uv the first that has any
        )
    return variables


def find_uv() -> str | None:
    """uv of this environment, put there first where it is missing."""
    uv = Path(sys.executable).parent / ("uv.exe" if os.name == "nt" else "uv")
    if not uv.exists():
        options = ["--quiet", "--disable-pip-version-check", "--only-binary=uv"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "uv"], capture_output=True, check=False)
    return str(uv) if uv.exists() else None


def install(arguments: list[str], into: str = sys.executable) -> bool:
    """
    :param arguments: as for ``pip install``
    :param into: the interpreter of an environment
    :returns: whether they are installed; if not, pip has said on stderr why
    """
    variables = uv_variables(pip_settings())
    uv = None if variables is None else find_uv()
    said = ""
    if uv is not None:
        given = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
        environ = {**os.environ, **(variables or {}), **given}
        command = [uv, "pip", "install", "--quiet", "--python", into, *arguments]
        done = subprocess.run(command, env=environ, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return True
        said = done.stderr.strip()
        if any(argument.startswith(("--resolution", "--prerelease")) for argument in arguments):
            print(said, file=sys.stderr)
            return False
        print("uv could not install what is needed; trying pip, which takes longer ...", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", into, "install"]
    if subprocess.run([*pip, *arguments], check=False).returncode == 0:
        return True
    if said:
        print(f"And uv had said:\n{said}", file=sys.stderr)
    return False


def main() -> int:
    arguments, into = sys.argv[1:], sys.executable
    if arguments[:1] == ["--into"]:
        into, arguments = arguments[1], arguments[2:]
    return 0 if install(arguments, into) else 1


if __name__ == "__main__":
    sys.exit(main())
