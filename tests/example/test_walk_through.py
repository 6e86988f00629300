"""One walk through the example: people use its pages, and the ledger and the dashboard say what the provider billed."""

import html
import re
from decimal import Decimal

import pytest
from example_site import Site, cost, tokens

from flask_llm_cost.ledger import Call

pytestmark = pytest.mark.slow


def tags_of(call: Call) -> dict[str, str]:
    return {tag.key: tag.value for tag in call.tags}


def text_of(page: str) -> str:
    """What a person reads. A long name may break between its words, and is one all the same."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.replace("<wbr>", ""))))


def test_a_streamed_chat_is_in_the_ledger_and_on_the_dashboard_as_billed(site: Site) -> None:
    """A question asked through the chat page, streamed, is one call whose user, tenant, feature, tokens and cost are those
    of the provider's truth, in the database and on both dashboards, though the app never asked the stream for usage."""
    with site.browser("ada@northwind.example") as ada:
        pieces = []
        with ada.stream("POST", "/chat", data={"question": "Why does my brake squeak?"}) as page:
            pieces.extend(page.iter_text())
        assert "You asked: Why does my brake squeak?" in text_of("".join(pieces))

        (billed,) = site.provider.truth
        (call,) = site.calls(1)
        assert billed.streamed
        assert (call.provider, call.model, call.requested_model) == ("openai", billed.model, "gpt-4o-mini")
        assert (call.operation, call.stream, call.outcome) == ("chat.completions", True, "ok")
        assert (call.usage_source, call.cost_status) == ("stream_final", "priced")
        assert (call.input_tokens, call.output_tokens) == tokens(billed)
        assert call.total_cost == sum(line.cost for line in call.line_items) == cost(billed) > 0
        assert call.provider_response_id == billed.response_id
        assert tags_of(call) == {
            "user_id": "2",
            "tenant_id": "northwind",
            "feature": "support_chat",
            "endpoint": "desk.chat",
        }
        mine = ada.get(f"/my-usage/calls/{call.id}")
    with site.browser("sam@desk.example") as sam:
        overview = sam.get("/llm-costs/")
        detail = sam.get(f"/llm-costs/calls/{call.id}")
        exact = sam.get(f"/llm-costs/calls/{call.id}?format=json").json()

    for page in (mine, detail):
        assert page.status_code == 200
        shown = text_of(page.text)
        for expected in (
            "northwind",
            "support_chat",
            "gpt-4o-mini-2024-07-18",
            billed.response_id[-4:],
            *map(str, tokens(billed)),
        ):
            assert expected in shown
    assert "Ada" in text_of(detail.text)
    assert "support_chat" in text_of(overview.text)
    assert Decimal(exact["total_cost"]) == cost(billed)


def test_summary_search_and_digest(site: Site) -> None:
    """A summary, a search and the digest job are recorded under their features, the job's calls with the command and the
    tenant; the model of our own is counted and has no cost."""
    with site.browser("chloe@juniper.example") as chloe:
        assert "You asked: a long letter" in text_of(chloe.post("/summarize", data={"text": "a long letter"}).text)
        assert "Ordering cakes" in text_of(chloe.get("/search", params={"q": "order a cake"}).text)
    printed = site.flask("digest")
    assert printed.startswith("Juniper Bakery\n")

    truth = {billed.response_id or billed.path: billed for billed in site.provider.truth}
    calls = site.calls(len(truth))
    assert len(calls) == len(truth) == 8
    by_feature: dict[str, list[Call]] = {}
    for call in calls:
        by_feature.setdefault(tags_of(call)["feature"], []).append(call)
        billed = truth[call.provider_response_id or "/openai/v1/embeddings"]
        assert (call.input_tokens, call.output_tokens) == tokens(billed)
        assert call.total_cost == (None if call.provider == "in_house" else cost(billed))

    assert {feature: len(found) for feature, found in by_feature.items()} == {
        "summaries": 1,
        "search": 1,
        "triage": 4,
        "digest": 2,
    }
    (summary,) = by_feature["summaries"]
    assert (summary.provider, summary.operation, tags_of(summary)["user_id"]) == ("anthropic", "messages", "4")
    assert {call.cost_status for call in by_feature["triage"]} == {"unpriced"}
    assert {tags_of(call)["tenant_id"] for call in by_feature["digest"]} == {"juniper", "northwind"}
    assert {tags_of(call)["command"] for call in by_feature["digest"] + by_feature["triage"]} == {"digest"}


def test_tenants_see_their_own_and_nothing_else(site: Site) -> None:
    """A customer finds the own tenant's calls under /my-usage, never another's, not by address and not by filter, and is
    refused where staff see everything."""
    with site.browser("ada@northwind.example") as ada, site.browser("chloe@juniper.example") as chloe:
        ada.post("/chat", data={"question": "About bicycles"})
        chloe.post("/chat", data={"question": "About bread"})
        calls = {tags_of(call)["tenant_id"]: call for call in site.calls(2)}

        for path in ("/", "/calls", f"/calls/{calls['juniper'].id}", "/calls?tag:tenant_id=juniper", "/calls?format=json"):
            page = ada.get(f"/my-usage{path}")
            assert "juniper" not in page.text.lower().replace("tag:tenant_id=juniper", "")
            assert str(calls["juniper"].id) not in page.text.replace(path, "")
            assert calls["juniper"].model not in page.text
        assert ada.get(f"/my-usage/calls/{calls['juniper'].id}").status_code == 404
        assert calls["northwind"].model in ada.get("/my-usage/calls").text
        assert ada.get("/llm-costs/").status_code == 403


def test_anonymous_visitors_see_nothing(site: Site) -> None:
    """Whoever is not signed in is sent to the login page by every page of both dashboards, stylesheet included."""
    with site.browser("ada@northwind.example") as ada:
        ada.post("/chat", data={"question": "Hello"})
        linked = re.findall(r'href="(/my-usage/[^"]+\.css[^"]*)"', ada.get("/my-usage/").text)
    (call,) = site.calls(1)
    assert linked
    with site.browser() as nobody:
        for mount in ("/llm-costs", "/my-usage"):
            for path in ("/", "/calls", f"/calls/{call.id}", "/calls?format=json", linked[0].removeprefix("/my-usage")):
                page = nobody.get(mount + path)
                assert page.status_code == 302
                assert page.headers["location"].startswith("/login")
                assert "northwind" not in page.text
                assert "gpt-4o" not in page.text
        for path in ("/", "/chat", "/summarize", "/search"):
            assert nobody.get(path).status_code == 302
