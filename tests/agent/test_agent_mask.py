"""Secrets do not reach the store, whatever the chunks, the spelling or the neighbours."""

import base64
import hashlib
import json
import urllib.parse

import pytest
from agent_stage import Stage
from hypothesis import example, given
from hypothesis import strategies as st

from runyard.agent import Masker, needles_of
from runyard.spec.plan import RunStep

SHORT = st.binary(min_size=1, max_size=5).map(lambda raw: bytes(b"abc"[byte % 3] for byte in raw))


def masked_at_once(text: bytes, needles: set[bytes]) -> bytes:
    """The obvious way: mark every byte of every occurrence, then replace each run of joined occurrences."""
    places = sorted(
        (at, at + len(needle)) for needle in needles for at in range(len(text)) if text.startswith(needle, at)
    )
    out, at = b"", 0
    while places:
        start, end = places.pop(0)
        while places and places[0][0] < end:
            end = max(end, places.pop(0)[1])
        out += text[at:start] + b"***"
        at = end
    return out + text[at:]


@given(
    text=st.lists(SHORT, max_size=30).map(b"".join),
    needles=st.sets(SHORT, min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 8), max_size=40),
)
@example(text=b"aaaaaaaaaa", needles={b"aaaa"}, cuts=[1] * 10)
@example(text=b"abcdef" * 3, needles={b"abcd", b"cdef"}, cuts=[3, 1, 1, 4, 6])
def test_chunks_make_no_difference(text: bytes, needles: set[bytes], cuts: list[int]) -> None:
    masker = Masker(needles)
    out, at = b"", 0
    for cut in cuts:
        out += masker.feed(text[at : at + cut])
        at += cut
    out += masker.feed(text[at:]) + masker.feed(b"", last=True)
    assert out == masked_at_once(text, needles)
    assert masker.held == b""


@given(st.lists(st.binary(max_size=9), max_size=20))
def test_nothing_to_mask_changes_nothing(chunks: list[bytes]) -> None:
    masker = Masker(set())
    assert b"".join(map(masker.feed, chunks)) == b"".join(chunks)


def test_only_what_may_become_a_secret_is_held_back() -> None:
    masker = Masker({b"secret"})
    assert masker.feed(b"the sec") == b"the "
    assert masker.feed(b"tion\n") == b"section\n"


SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4, max_size=40).filter(
    lambda value: len(value.strip()) >= 4 and len(value.splitlines()) == 1
)


@given(SECRETS, st.binary(max_size=7), st.binary(max_size=7))
def test_spellings(value: str, before: bytes, after: bytes) -> None:
    """In base64 the six bits at each edge depend on the neighbours; all that is the secret's alone is masked."""
    raw = value.encode()
    needles = needles_of(value)
    mask = Masker(needles)

    def feed(text: bytes) -> bytes:
        return mask.feed(text, last=True)

    assert raw not in feed(before + raw + after)
    for spelled in (urllib.parse.quote(value), urllib.parse.quote_plus(value), urllib.parse.quote(value, safe="")):
        assert feed(spelled.encode()) == b"***"
    assert b"***" in feed(json.dumps({"a": value}).encode())
    assert b"***" in feed(json.dumps({"a": value}, ensure_ascii=False).encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        left = feed(encode(before + raw + after))
        assert b"***" in left
        start, end = -(-len(before) * 8 // 6), (len(before) + len(raw)) * 8 // 6
        assert encode(before + raw + after)[start:end] not in left


def test_lines_of_a_secret_are_masked_one_by_one() -> None:
    value = "-----BEGIN KEY-----\nMIIEow\nx\n\nIBAAKC \n-----END KEY-----\n"
    mask = Masker(needles_of(value))
    assert mask.feed(b"> MIIEow\n> x\n> IBAAKC\n", last=True) == b"> ***\n> x\n> ***\n"
    assert mask.feed(b"-----END KEY-----", last=True) == b"***"


def test_base64_of_a_long_secret_in_lines() -> None:
    value = "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(5))
    encoded = base64.encodebytes(value.encode())
    left = Masker(needles_of(value)).feed(encoded, last=True)
    assert left.replace(b"***", b"").strip() == b""


@pytest.mark.promise(4)
def test_secrets_in_a_log(stage: Stage) -> None:
    secrets = {"TOKEN": "hunter2hunter2", "SHORT": "abc", "EMPTY": "", "KEY": "line one\nline two\n"}
    command = """
    printf hunter2; sleep 0.2; echo hunter2
    printf hunter2hunter2 | base64
    echo 'line two abc'
    """
    stage.play(RunStep(command=command), mask=[*secrets, "MISSING"], secrets=secrets)
    log = stage.log(0)
    assert log == b"***\n***\n*** abc\n"
    record = stage.manifest.steps[0]
    assert (record.bytes, record.sha256) == (len(log), hashlib.sha256(log).hexdigest())
    assert record.last_line == "*** abc"
    assert stage.manifest.notes == ["the secret in SHORT is shorter than 4 characters and is not masked"]
    everywhere = b"".join(path.read_bytes() for path in stage.store.rglob("*") if path.is_file())
    assert b"hunter2" not in everywhere
