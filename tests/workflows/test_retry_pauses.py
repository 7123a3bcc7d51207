"""How long a task pauses before it is tried again, whatever its numbers are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.spec.plan import Retry
from workflows.task import _pause_s


def retry(backoff_s: float, factor: float, max_s: float) -> Retry:
    return Retry(limit=1_000, backoff_s=backoff_s, backoff_factor=factor, backoff_max_s=max_s)


def test_what_no_float_can_hold_is_the_longest_pause() -> None:
    """The workflow's task failed instead, again and again: a run that nobody could end but by terminating it."""
    assert [_pause_s(retry(5, 1_000, 300), retries) for retries in (0, 1, 102, 103, 400)] == [5, *[300] * 4]


@given(
    backoff_s=st.floats(0.001, 10),
    factor=st.floats(1, 10),
    max_s=st.floats(10, 3_600),
    retries=st.integers(0, 300),
)
def test_each_pause_is_a_multiple_of_the_last_up_to_the_longest(
    backoff_s: float, factor: float, max_s: float, retries: int
) -> None:
    assert _pause_s(retry(backoff_s, factor, max_s), retries) == min(max_s, backoff_s * factor**retries)


@pytest.mark.parametrize("retries", [0, 1, 7])
def test_a_factor_of_one_keeps_the_pause(retries: int) -> None:
    assert _pause_s(retry(2, 1, 300), retries) == 2
