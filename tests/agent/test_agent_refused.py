"""A store that refuses a large upload says so early, and then takes no more of it."""

import socket
import threading
from pathlib import Path

import pytest

from runyard.agent import Patience, StoreRefused, Url

ANSWER = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\nConnection: close\r\n\r\nPolicy expired"


def refuse(server: socket.socket) -> None:
    """As Go does: the answer, a little more of the request, the end."""
    while True:
        try:
            peer, _ = server.accept()
        except OSError:  # the test is over
            return
        with peer:
            head = b""
            while b"\r\n\r\n" not in head:
                head += peer.recv(65536)
            peer.sendall(ANSWER)
            left = 256 << 10
            peer.settimeout(0.5)
            while left > 0:
                try:
                    taken = len(peer.recv(min(left, 65536)))
                except OSError:
                    break
                left -= taken or left


@pytest.mark.parametrize("size", [100 << 10, 50 << 20])
def test_a_refusal_is_one_however_large_the_upload(tmp_path: Path, size: int) -> None:
    """It was taken for a store that is away, and the upload repeated for as long as main lived."""
    (tmp_path / "archive").write_bytes(bytes(size))
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/bucket"
        target = Url({"kind": "url", "url": address, "prefix": "p/", "fields": {}}, Patience(), str(tmp_path))
        with pytest.raises(StoreRefused, match="Policy expired"):
            target.keep(str(tmp_path / "archive"), "0.tar.gz")
