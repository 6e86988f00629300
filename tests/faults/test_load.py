"""Under load every call is in the ledger once, and the sum is the provider's to the last digit."""

from __future__ import annotations

import pytest
from desks import Desk


@pytest.mark.parametrize(
    ("processes", "threads", "each"),
    [
        pytest.param(1, 4, 10, id="a little"),
        pytest.param(4, 8, 10, id="some", marks=pytest.mark.slow),
        pytest.param(4, 8, 500, id="much", marks=pytest.mark.soak),
    ],
)
def test_steady_load(any_desk: Desk, processes: int, threads: int, each: int) -> None:
    """Processes and threads at once, half of the calls streamed: nothing lost, nothing twice, the sum exact."""
    returned = any_desk.load(processes, threads, each)
    assert len(returned) == processes * threads * each
    any_desk.figures(returned).check()
