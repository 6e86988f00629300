"""Patching other people's classes: only what the host has imported, once, and so that it can be taken back.

All state of this module is the table below. A patch is taken back only where the class still holds our function: if another
library has wrapped it since, ours stays in the chain, and passes everything through because no app asks for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final

import wrapt

from flask_llm_cost.capture import aiohttp, botocore, httpx, litellm, propagation, requests, sdk, websockets
from flask_llm_cost.config import LIBRARIES
from flask_llm_cost.errors import IntegrationError
from flask_llm_cost.log import log

_Targets = Callable[[ModuleType], tuple[tuple[type | ModuleType, str, Callable[..., Any]], ...]]

#: What is patched of a library, and the modules in which it keeps that; an app may import one of them and not the other.
_LIBRARY_MODULES: Final[dict[str, tuple[_Targets, *tuple[str, ...]]]] = {
    "httpx": (httpx.targets, "httpx"),
    "httpx2": (httpx.targets, "httpx2"),
    "requests": (requests.targets, "requests.sessions"),
    "aiohttp": (aiohttp.targets, "aiohttp"),
    "botocore": (botocore.targets, "botocore.client"),
    "websockets": (websockets.targets, "websockets.sync.client", "websockets.asyncio.client"),
}
#: The client libraries that can be watched.
WATCHED: Final = frozenset(_LIBRARY_MODULES)
_SDK_MODULES: Final[dict[str, tuple[str, _Targets]]] = {
    "openai": ("openai._base_client", sdk.targets),
    "anthropic": ("anthropic._base_client", sdk.targets),
    # Made by the same generator.
    "groq": ("groq._base_client", sdk.targets),
    "cerebras": ("cerebras.cloud.sdk._base_client", sdk.targets),
    "together": ("together._base_client", sdk.targets),
    "google-genai interactions": ("google.genai._interactions._base_client", sdk.targets),
    "litellm errors": ("litellm.litellm_core_utils.exception_mapping_utils", litellm.targets),
    "litellm streams": ("litellm.litellm_core_utils.streaming_handler", litellm.stream_targets),
}

#: Distributions that are imported by another name.
_IMPORT_NAMES: Final = {"google-genai": "google.genai"}

_lock = threading.Lock()
#: Class and attribute to what was there, and what is there now.
_patched: dict[tuple[type | ModuleType, str], tuple[Any, Any]] = {}
_hooked: set[str] = set()
#: Library and module of it to what went wrong when that was patched.
_failures: dict[tuple[str, str], str] = {}


def libraries(instrument: str | Iterable[str]) -> frozenset[str]:
    """The client libraries that ``LLM_COST_INSTRUMENT`` stands for."""
    if instrument == "auto":
        return frozenset(_LIBRARY_MODULES)
    return frozenset(library for name in instrument for library in LIBRARIES[name])


def install(instrument: str | Iterable[str]) -> None:
    """Patch what is imported already, and the rest when the host imports it.

    :raises IntegrationError: when a library that was named explicitly is not installed, or cannot be patched
    """
    explicit = () if instrument == "auto" else tuple(instrument)
    for name in explicit:
        if not _is_installed(_IMPORT_NAMES.get(name, name)):
            raise IntegrationError(name, "it is not installed; install it, or take it out of LLM_COST_INSTRUMENT")
    wanted = libraries(instrument)
    hooks = [
        (name, module_name, targets)
        for name, (targets, *module_names) in _LIBRARY_MODULES.items()
        for module_name in module_names
        if name in wanted
    ]
    if wanted:
        hooks += [(name, module_name, targets) for name, (module_name, targets) in _SDK_MODULES.items()]
    for library, module_name, targets in hooks:
        _hook(library, module_name, targets)
        if library in explicit and (why := failure(library)) is not None:
            raise IntegrationError(library, why)


def failure(library: str) -> str | None:
    """What keeps a library, or a part of it, from being watched; ``None`` where nothing does."""
    return next((why for (name, _), why in _failures.items() if name == library), None)


def install_propagation() -> None:
    """Let thread pools carry tags, for the apps that ask for it."""
    _hook("concurrent.futures", "concurrent.futures.thread", propagation.pool_targets)


def _is_installed(name: str) -> bool:
    if sys.modules.get(name) is not None:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _hook(library: str, module_name: str, targets: _Targets) -> None:
    _finish_import(module_name)
    with _lock:
        is_hooked = module_name in _hooked
        _hooked.add(module_name)
    patch = functools.partial(_patch, library, module_name, targets)
    if not is_hooked:
        # Runs at once for a module that is there, later for one that is not. Never imports.
        wrapt.register_post_import_hook(patch, module_name)
    elif (module := sys.modules.get(module_name)) is not None:  # None is how an import is forbidden
        patch(module)


def _finish_import(module_name: str) -> None:
    """Wait for another thread that is importing a module right now; what is half there cannot be patched."""
    with contextlib.suppress(Exception):  # the host's import, and its error
        if getattr(sys.modules[module_name].__spec__, "_initializing", False):
            importlib.import_module(module_name)


def _patch(library: str, module_name: str, targets: _Targets, module: ModuleType) -> None:
    try:
        with _lock:
            for owner, attribute, wrap in targets(module):
                present = owner.__dict__[attribute]
                if (owner, attribute) in _patched and _is_in_place(present, _patched[owner, attribute][1]):
                    continue
                replacement = wrap(present)
                setattr(owner, attribute, replacement)
                _patched[owner, attribute] = (present, replacement)
        _failures.pop((library, module_name), None)
    except Exception as error:
        # The host is in the middle of an import: it must go on.
        lacks = getattr(error, "name", None) or error
        why = f"it has no {lacks}" if isinstance(error, AttributeError | KeyError) else type(error).__name__
        _failures[library, module_name] = why
        log.warning("%s cannot be watched (%s): its calls are not recorded", library, type(error).__name__)


def _is_in_place(present: Any, ours: Any) -> bool:
    """Whether our function is there, or under what others have wrapped around it.

    Who wraps without saying so is wrapped once more: a call is recognised by its request, and counted once.
    """
    while present is not None:
        if present is ours:
            return True
        present = getattr(present, "__wrapped__", None)
    return False


def uninstall() -> None:
    """Take every patch back whose class still holds our function."""
    with _lock:
        for (owner, attribute), (original, replacement) in list(_patched.items()):
            if owner.__dict__.get(attribute) is replacement:
                setattr(owner, attribute, original)
                del _patched[owner, attribute]


def is_imported(library: str) -> bool:
    """Whether what is patched of *library* is there."""
    _, *module_names = _LIBRARY_MODULES[library]
    return any(sys.modules.get(name) is not None for name in module_names)


def undone(library: str) -> list[str]:
    """What of *library* was patched and is no longer, because somebody replaced it: ``module.Class.attribute``."""
    targets, *module_names = _LIBRARY_MODULES[library]
    return [
        f"{owner.__module__.partition('.')[0]}.{owner.__qualname__}.{attribute}"
        for module in map(sys.modules.get, module_names)
        if module is not None
        for owner, attribute, _ in targets(module)
        if (owner, attribute) in _patched and not _is_in_place(owner.__dict__.get(attribute), _patched[owner, attribute][1])
    ]


def patched() -> list[str]:
    """What is patched now, as ``module.Class.attribute``."""
    return sorted(f"{_name_of(owner)}.{attribute}" for owner, attribute in _patched)


def _name_of(owner: type | ModuleType) -> str:
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
