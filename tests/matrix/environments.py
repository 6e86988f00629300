"""Virtual environments with packages of other versions than the tests' own, made once and kept.

They are in ``.venv-matrix`` at the root of the repository. An environment is made again when what it needs has changed.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-matrix"


@dataclass(frozen=True, slots=True)
class Environment:
    """Packages that live together, and what is run there. Without requirements it is the environment of the tests.

    :param runs: arguments of the driver: a module with routes, and options
    """

    name: str
    requirements: tuple[str, ...]
    runs: tuple[str, ...]


_SDKS = ("openai_routes", "openai_media_routes", "anthropic_routes", "genai_routes", "genai_routes --without aiohttp")

ENVIRONMENTS = (
    Environment("newest", (), (*_SDKS, "bedrock_routes")),
    Environment(
        "old",
        ("openai==1.109.*", "anthropic==0.125.*", "google-genai==1.75.*", "aiohttp", "boto3"),
        (*_SDKS, "bedrock_routes"),
    ),
    Environment("middle", ("openai>=2,<3", "anthropic>=1,<2", "google-genai>=2,<3", "aiohttp", "boto3"), _SDKS),
    Environment(
        "langchain",
        ("langchain-openai", "langchain-anthropic", "langchain-google-genai", "aiohttp"),
        ("langchain_routes",),
    ),
    Environment("litellm", ("litellm", "mcp", "aiohttp", "groq"), ("litellm_routes", "groq_routes")),
    # Resolved together with litellm, pip tries versions for ten minutes.
    Environment(
        "agents",
        ("pydantic-ai-slim[anthropic,google,openai]", "mistralai", "aiohttp"),
        ("pydantic_ai_routes", "mistral_routes"),
    ),
)


@cache
def python_of(environment: Environment) -> str:
    """The interpreter of an environment, which is made where it is missing or has another content.

    :raises subprocess.CalledProcessError: when its packages cannot be installed; the reason is on stderr
    """
    if not environment.requirements:
        return sys.executable
    folder = FOLDER / environment.name
    python = folder / "bin" / "python"
    own = configparser.ConfigParser()
    own.read(ROOT / "setup.cfg")
    wanted = "\n".join((sys.version, str(ROOT), *environment.requirements, own["options"]["install_requires"]))
    noted = folder / "installed"
    if noted.exists() and noted.read_text() == wanted:
        return str(python)
    venv.create(folder, clear=True)
    install = [sys.executable, str(ROOT / "scripts" / "install.py"), "--into", str(python), "--editable", str(ROOT)]
    subprocess.run([*install, *environment.requirements], check=True)
    noted.write_text(wanted)
    return str(python)
