"""What the agent makes of a store's answers: every form that HTTP/1.1 has for them, and those that are none."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runyard.agent import HEADERS, Wire, divide_netloc, divide_url

ANSWER = b'HTTP/1.1 200 OK\r\nETag: "abc"\r\n'


@contextmanager
def answering(*answers: bytes, hang_up: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request of five bytes of body, then writes the next of these; what it was sent."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    data = b""
                    while not data.endswith(b"hello"):
                        data += connection.recv(65536)
                    received.append(data)
                    connection.sendall(answer)
                if not hang_up:
                    connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", received
        thread.join(10)


def ask(wire: Wire) -> tuple[int, str, str]:
    return wire.ask("PUT", "/b/k?x=%20", {"Content-Length": "5"}, [b"he", b"llo"])


@pytest.mark.parametrize(
    ("answer", "text", "ends"),
    [
        (ANSWER + b"Content-Length: 0\r\n\r\n", "", False),
        (ANSWER + b"Content-Length: 3\r\n\r\nabc", "abc", False),
        (ANSWER + b"content-length: 3\r\nconnection: Close\r\n\r\nabc", "abc", True),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\n", "abc", False),
        (ANSWER + b"\r\nabc", "abc", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER + b"Content-Length: 1\r\n\r\na", "a", False),
        (b'HTTP/1.0 200 OK\r\nETag: "abc"\r\nContent-Length: 1\r\n\r\na', "a", True),
        (ANSWER + b"Content-Length: 70000\r\n\r\n" + b"a" * 70000, "a" * 65536, True),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n11170\r\n" + b"a" * 70000, "a" * 65536, True),
    ],
    ids=["empty", "sized", "closing", "chunked", "to the end", "continue", "1.0", "too long", "too long a chunk"],
)
def test_an_answer_is_read_to_its_end(answer: bytes, text: str, ends: bool) -> None:
    with answering(answer) as (address, received):
        wire = Wire("http", address)
        assert ask(wire) == (200, text, '"abc"')
        assert wire.ends is ends
        wire.close()
    (request,) = received
    assert request.startswith(f"PUT /b/k?x=%20 HTTP/1.1\r\nHost: {address}\r\n".encode())


def test_a_connection_serves_one_request_after_the_other() -> None:
    other = b"HTTP/1.1 204 No Content\r\n\r\n"
    with answering(other, ANSWER + b"Content-Length: 1\r\n\r\nb", hang_up=False) as (address, _):
        wire = Wire("http", address)
        assert ask(wire) == (204, "", "")
        assert not wire.was_closed()
        assert ask(wire) == (200, "b", '"abc"')
        wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        ANSWER,
        ANSWER + b"Content-Length: 9\r\n\r\nabc",
        ANSWER + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ANSWER + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        ANSWER + b"".join(b"h%d: 1\r\n" % n for n in range(HEADERS + 1)) + b"\r\n",
        ANSWER + b"x: " + b"a" * 70000,
    ],
    ids=["none", "another protocol", "no status", "cut", "short", "no size", "cut chunk", "many", "long"],
)
def test_what_is_no_answer_is_an_error_of_the_connection(answer: bytes) -> None:
    with answering(answer) as (address, _):
        wire = Wire("http", address)
        with pytest.raises(OSError):  # noqa: PT011 (whichever: the agent tries again)
            ask(wire)
        wire.close()


def test_a_server_that_has_hung_up_is_seen_before_the_next_request() -> None:
    with answering(ANSWER + b"Content-Length: 0\r\n\r\n") as (address, _):
        wire = Wire("http", address)
        ask(wire)
    assert wire.was_closed()
    wire.close()


@pytest.mark.parametrize(
    ("url", "parts", "place"),
    [
        ("http://h/b/k?a=b/c", ("http", "h", "/b/k?a=b/c"), ("h", 80)),
        ("HTTPS://s3.example:9000/b", ("https", "s3.example:9000", "/b"), ("s3.example", 9000)),
        ("http://[::1]:9000/b", ("http", "[::1]:9000", "/b"), ("::1", 9000)),
        ("http://[::1]/b", ("http", "[::1]", "/b"), ("::1", 80)),
        ("http://h", ("http", "h", "/"), ("h", 80)),
    ],
)
def test_urls_are_divided(url: str, parts: tuple[str, str, str], place: tuple[str, int]) -> None:
    assert divide_url(url) == parts
    assert divide_netloc(parts[1], 80) == place
