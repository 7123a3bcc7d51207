"""The receipt is read from whatever text is found: whole, cut, or somebody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.script import Receipt, parse_receipt

CASES = {
    "": Receipt(),
    "0 0;1 3;sealed;": Receipt(steps={0: 0, 1: 3}, sealed=True),
    "0 0;term;1 143;sealed;": Receipt(steps={0: 0, 1: 143}, term=True, sealed=True),
    "timeout 2;2 124;sealed;": Receipt(steps={2: 124}, timed_out=2, sealed=True),
    "0 0;agent lost;": Receipt(steps={0: 0}, agent_lost=True),
    "started before;": Receipt(started_before=True),
    "store refused;": Receipt(store_refused=True),
    "0 0;store refused it answers 403;": Receipt(steps={0: 0}, store_refused=True, message="it answers 403"),
    "service failed db was not ready;": Receipt(service_failed=True, message="db was not ready"),
    "service failedly;": Receipt(),
    "0 0;1 0;seal": Receipt(steps={0: 0, 1: 0}),  # cut
    "0 0;1 1": Receipt(steps={0: 0}),  # cut: it may have been 137
    "sealed;0 0;": Receipt(steps={0: 0}),  # not its last word
    "-1 0;0 -1;0  1;0 1000;٣ 0;9999999 0;": Receipt(),
    "0 0\n;sealed;": Receipt(sealed=True),
    "timeout;timeout x;timeout 1;timeout 2;": Receipt(timed_out=1),
}


@pytest.mark.parametrize("text", CASES)
def test_receipt(text: str) -> None:
    assert parse_receipt(text) == CASES[text]


@given(st.text())
def test_any_text(text: str) -> None:
    parse_receipt(text)


@given(
    st.lists(
        st.one_of(
            st.text("0123456789 ;adelmrst", max_size=12),
            st.sampled_from(["sealed", "term", "agent lost", "1 0", "timeout 3"]),
        )
    )
)
def test_any_words(words: list[str]) -> None:
    receipt = parse_receipt(";".join(words))
    assert all(0 <= step < 10**6 and 0 <= code < 1000 for step, code in receipt.steps.items())


@given(st.lists(st.tuples(st.integers(0, 999_999), st.integers(0, 255)), unique_by=lambda pair: pair[0]))
def test_round_trip(steps: list[tuple[int, int]]) -> None:
    text = "".join(f"{step} {code};" for step, code in steps) + "sealed;"
    assert parse_receipt(text) == Receipt(steps=dict(steps), sealed=True)
