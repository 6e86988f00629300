"""What a killed process leaves behind is not lost and not counted twice."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from example_site import Site, cost

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("found_by", ["the next call", "flush"])
def test_no_call_is_lost_when_the_process_is_killed(site: Site, found_by: str) -> None:
    """200 calls at once, half of them streamed, while the database is locked so that none is written; SIGKILL as soon as
    the last has returned; then a new start and its first call, or ``flask llm-cost flush`` alone: every call is there, once,
    and their total is what the provider billed, to the last digit."""

    def use(number: int) -> int:
        if number % 2:
            return browser.post("/chat", data={"question": f"Question {number}"}).status_code
        return browser.post("/summarize", data={"text": f"Letter {number} " * (number % 7 + 1)}).status_code

    with site.locked_database(), site.browser("ada@northwind.example") as browser:
        with ThreadPoolExecutor(200) as pool:
            statuses = list(pool.map(use, range(200)))
        site.kill()
    assert statuses == [200] * 200
    assert site.calls(0) == []

    if found_by == "flush":
        assert "all records are in the database" in site.flask("llm-cost", "flush")
    site.start()
    if found_by == "the next call":
        with site.browser("ada@northwind.example") as browser:
            assert browser.post("/chat", data={"question": "And again?"}).status_code == 200

    truth = site.provider.truth
    calls = site.calls(len(truth))
    assert len(calls) == (200 if found_by == "flush" else 201)
    assert sorted(call.provider_response_id for call in calls) == sorted(billed.response_id for billed in truth)
    assert sum(call.total_cost for call in calls) == sum(map(cost, truth), Decimal(0))
