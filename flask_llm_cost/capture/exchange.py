"""One request of a client library on its way: recognised once, however many layers send it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from flask_llm_cost import usage as wire
from flask_llm_cost.capture.attribution import Tags, claimants, owner, warn_of_unowned
from flask_llm_cost.capture.guard import guarded
from flask_llm_cost.capture.observation import Observation
from flask_llm_cost.capture.sdk import current_marker

#: Headers that sign a body, or say how it is encoded: then it must not change.
_FIXED_BODY: Final = (
    "content-encoding", "content-md5", "content-digest", "digest", "signature", "x-amz-content-sha256", "x-amz-date",
    "x-signature", "x-hub-signature-256",
)  # fmt: skip

#: Around an IPv6 address.
_BRACKETS: Final = str.maketrans("", "", "[]")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client library is about to send.

    :param library: as ``LLM_COST_INSTRUMENT`` names it
    :param exchange: the library's own object; a layer that sends the same one again is not a second call
    :param host: lower case, with its port where the URL has one
    :param headers: by lower-case name
    :param content: asked only when this is a call: the body, where it is in memory
    :param form: asked where that is not in memory: the fields of a form without its files, written as such a body
    :param can_withhold: whether an event can be taken out of the reply before the app sees it
    :param begins: whether the call begins here, so that it is known how long it takes
    """

    library: str
    exchange: object
    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    content: Callable[[], bytes | None]
    can_withhold: bool = False
    form: Callable[[], bytes | None] = lambda: None
    begins: bool = True

    def may_change(self) -> bool:
        """Whether another body may be sent in place of this one: it is neither signed nor encoded."""
        headers = self.headers
        return self.can_withhold and not (
            any(name in headers for name in _FIXED_BODY) or headers.get("authorization", "").startswith("AWS4-")
        )


@dataclass(slots=True)
class _Sending:
    """What is under way. Emptied at its end: timers and tasks made meanwhile keep a copy of the context that it is in."""

    request: Request | None
    observation: Observation | None


#: What is being sent here, by the outermost layer that we know.
_sending: ContextVar[_Sending | None] = ContextVar("llm_cost_sending", default=None)


class Layer:
    """An adapter or transport that the app puts into a client itself."""

    #: Its ``tags=``.
    carried: Tags | None = None


def tags_ahead(client: Any, find: str, url: Any) -> Tags | None:
    """The tags of the layer of ours that will send to *url*, so that budgets are asked with them before it is its turn.

    :param find: the method of *client* that says which layer sends
    """
    try:
        layer = getattr(client, find)(url)
        return layer.carried if isinstance(layer, Layer) else None
    except Exception:
        return None  # whatever it is, the app hears of it from the client


@guarded
def observe(request: Request, carried: Tags | None = None, *, explicit: bool = False) -> Observation | None:
    """Begin watching, where this is a call that somebody owns. ``None`` for all other traffic.

    An adapter or transport of ours gets what is on its way already, with its tags taken: they may concern a budget.

    :param carried: the ``tags=`` of the adapter or transport that sends it
    :param explicit: whether the app put that adapter or transport there, so that ``LLM_COST_INSTRUMENT`` does not matter
    """
    outer, state = _sending.get(), owner(warn=False)
    # A second call of a watched library came by its client first; of any other, an explicit layer is the first to see it.
    came_by = explicit and (state is None or request.library in state.libraries)
    if outer is not None and outer.request is not None and _is_part_of(request, outer.request, came_by):
        if not explicit or outer.observation is None:
            return None
        if not outer.observation.ended:
            outer.observation.carry(carried)
            return outer.observation
        # A budget said no on the way, and somebody tries again: that is a call of its own.
    marker = current_marker()
    if state is None:
        _pass_unowned(request, explicit, marked=marker is not None)
        return None
    if not (explicit or request.library in state.libraries):
        return None
    route = wire.route(state.hosts, request.method, request.host, request.path, request.headers, marker is not None)
    if route is None:
        return None
    return Observation(state, route, marker, request, carried)


def _pass_unowned(request: Request, explicit: bool, *, marked: bool) -> None:
    """Count a call of which nobody can say whose it is, at every app that would have taken it for a call of its own."""
    for state in claimants():
        if explicit or request.library in state.libraries:
            route = wire.route(state.hosts, request.method, request.host, request.path, request.headers, marked)
            if route is not None and route.certain and not route.format.shape_only:
                state.ledger.note_unattributed()
                warn_of_unowned()


def _is_part_of(request: Request, outer: Request, came_by: bool) -> bool:
    """Whether a request is a layer of the one that is being sent, and not a second call made meanwhile, in a hook.

    :param came_by: whether the library's client would have shown a second call already: then this is how it is redirected
    """
    if request.exchange is outer.exchange:
        return True
    return came_by if request.library == outer.library else _place(request) == _place(outer)


def _place(request: Request) -> tuple[str, str]:
    """Where a request goes, written alike for all libraries: some keep the scheme's own port, or drop brackets."""
    return request.host.translate(_BRACKETS).removesuffix(":443").removesuffix(":80"), request.path


@contextmanager
def under_way(request: Request, observation: Observation, sent: Callable[[Exception], bool]) -> Iterator[None]:
    """The request is on its way. What the library raises ends the observation, and goes on to the app.

    :param sent: whether a request that failed so may have reached the provider
    """
    outer, sending = _sending.get(), _Sending(request, observation)
    _sending.set(sending)
    observation.on_its_way = True
    try:
        yield
    except BaseException as error:
        observation.failed(error, sent)
        raise
    finally:
        _sending.set(outer)
        sending.request = sending.observation = None
