"""The other kind of store: one presigned POST for a prefix, over HTTP, with a server that can fail."""

import email.parser
import email.policy
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agent_stage import Stage

from runyard.agent import Patience, StoreRefused, Url
from runyard.dialogue import Manifest, StoredArchive
from runyard.spec.plan import Content, RestoreWorkspaceStep, RunStep, SaveToWorkspaceStep
from runyard.store.base import UrlTarget

Fault = Callable[["Handler", str], bool]


class Bucket(ThreadingHTTPServer):
    """Takes POST forms under the policy `pass`, a claim by PUT, and GET. ``fault`` may do something else."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.lies = 0  # answers with a wrong ETag that are still to be given
        self.fault: Fault = lambda handler, key: False
        self.fault_after: Fault = lambda handler, key: False  # once it has been written
        self.requests = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Cuts are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fields = form(self.headers["Content-Type"], body)
        key = fields["key"].decode()
        self.server.requests += 1
        if self.server.fault(self, key):
            return
        if fields.get("policy") != b"pass" or not key.startswith("pre/"):
            self.answer(403, b"<Code>AccessDenied</Code>")
        else:
            self.server.objects[key] = fields["file"]
            self.answer(204, b"", etag_of(b"else" if self.server.lies > 0 else fields["file"]))
            self.server.lies -= 1

    def do_PUT(self) -> None:
        key = self.path.lstrip("/").partition("?")[0]
        data = self.rfile.read(int(self.headers["Content-Length"]))
        there = self.server.objects.get(key)
        if self.server.fault(self, key):
            return
        absent, same = self.headers["If-None-Match"] == "*", self.headers["If-Match"]
        if not self.path.endswith("?signature=x"):
            self.answer(403, b"<Code>SignatureDoesNotMatch</Code>")
        elif absent == (there is not None) or (same and (there is None or etag_of(there) != same)):
            self.answer(412, b"<Code>PreconditionFailed</Code>")
        else:
            self.server.objects[key] = data
            if not self.server.fault_after(self, key):
                self.answer(200, b"", etag_of(data))

    def do_GET(self) -> None:
        key = self.path.lstrip("/").partition("?")[0]
        if not self.server.fault(self, key):
            found = self.server.objects.get(key)
            self.answer(404, b"NoSuchKey") if found is None else self.answer(200, found)

    def answer(self, status: int, body: bytes, etag: str = "") -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *args: object) -> None:
        """Quiet."""


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """A multipart form, read by another library's parser."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    fields = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        assert isinstance(name, str)
        boundary = message.get_boundary()
        assert boundary is not None
        start = body.index(f'name="{name}"'.encode())
        start = body.index(b"\r\n\r\n", start) + 4
        fields[name] = body[start : body.index(f"\r\n--{boundary}".encode(), start)]
    return fields


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def target(bucket: Bucket) -> UrlTarget:
    return UrlTarget(
        url=f"{bucket.address}/bucket",
        prefix="pre/1/",
        fields={"policy": "pass"},
        claim=f"{bucket.address}/pre/1/started?signature=x",
    )


def log_of(bucket: Bucket, step: int) -> bytes:
    data = b""
    for key in sorted(bucket.objects):
        if key.startswith(f"pre/1/segments/{step}/"):
            begin = int(key.rpartition("/")[2])
            assert begin <= len(data)  # a large one may have what small ones behind it have too
            data += bucket.objects[key][len(data) - begin :]
    return data


def manifest_of(bucket: Bucket) -> Manifest:
    return Manifest.model_validate_json(bucket.objects["pre/1/manifest.json"])


def test_whole_task(stage: Stage, bucket: Bucket) -> None:
    steps = [
        RunStep(command="echo a; head -c 9000000 /dev/zero"),
        RunStep(command="printf '\\r\\n--runyard\\r\\n'"),
    ]
    assert stage.play(*steps, logs=target(bucket)) == 0
    assert log_of(bucket, 0) == b"a\n" + bytes(9_000_000)
    assert log_of(bucket, 1) == b"\r\n--runyard\r\n"
    assert manifest_of(bucket).seal == "complete"
    assert json.loads(bucket.objects["pre/1/started"])["run_id"] == "run"


@pytest.mark.promise(2)
def test_attempt_is_started_once(stage: Stage, bucket: Bucket) -> None:
    bucket.objects["pre/1/started"] = b"{}"
    assert stage.play(RunStep(command="echo ran >../ran"), logs=target(bucket)) == 125
    assert stage.receipt.started_before
    assert not (stage.home / "ran").exists()


@pytest.mark.promise(2)
def test_no_claim_no_start(stage: Stage, bucket: Bucket) -> None:
    """Without it nothing would keep two pods of one attempt apart."""
    words = target(bucket).model_copy(update={"claim": ""})
    assert stage.play(RunStep(command="echo ran >../ran"), logs=words) == 125
    assert stage.receipt.store_refused
    assert "only once" in stage.receipt.message


@pytest.mark.promise(9)
def test_claim_whose_answer_is_lost_is_still_ours(stage: Stage, bucket: Bucket) -> None:
    """It is written, and asked for again: what is there is our own, so the steps run."""
    bucket.fault_after = _times(1, _cut_before)
    assert stage.play(RunStep(command="echo ran"), logs=target(bucket)) == 0
    assert log_of(bucket, 0) == b"ran\n"


@pytest.mark.promise(2)
def test_claim_that_was_lost_to_another_while_we_did_not_know(stage: Stage, bucket: Bucket) -> None:
    """Our first try got no answer since the store was away; meanwhile another has it."""

    def fault(handler: Handler, key: str) -> bool:
        bucket.objects["pre/1/started"] = b"another's"
        return _busy(handler, key)

    bucket.fault = _times(1, fault)
    assert stage.play(RunStep(command="echo ran >../ran"), logs=target(bucket)) == 125
    assert stage.receipt.started_before
    assert bucket.objects["pre/1/started"] == b"another's"


def test_store_that_keeps_something_else_once_gets_it_again(stage: Stage, bucket: Bucket) -> None:
    bucket.lies = 1
    assert stage.play(RunStep(command="echo a"), logs=target(bucket)) == 0
    assert "something else" in stage.words("agent.log")


def test_store_whose_etags_are_no_digests(stage: Stage, bucket: Bucket) -> None:
    """As with encryption by a key of the user's: two in a row, and nothing is compared any more."""
    bucket.lies = 1000
    steps = [RunStep(command="echo a"), RunStep(command="echo b"), SaveToWorkspaceStep(contents=[Content()])]
    assert stage.play(*steps, logs=target(bucket), archives=target(bucket)) == 0
    assert stage.words("agent.log").count("something else") == 2  # one for each of the two targets
    assert [archive.checked for archive in manifest_of(bucket).archives] == [False]
    assert [step.parts for step in manifest_of(bucket).steps] == [[], [], []]


def test_store_that_refuses_the_second_look(stage: Stage, bucket: Bucket) -> None:
    """What came in small segments cannot be written once more as one: then it stays, and is not confirmed."""

    def refuse(handler: Handler, key: str) -> bool:
        if key.endswith("/segments/0/0000000000000000") and key in handler.server.objects:
            handler.answer(403, b"<Code>AccessDenied</Code>")
            return True
        return False

    bucket.fault = refuse
    step = RunStep(command="for i in 1 2 3; do echo $i; sleep 0.7; done")
    assert stage.play(step, logs=target(bucket)) == 0
    (record,) = manifest_of(bucket).steps
    assert (record.bytes, record.truncated, record.parts) == (6, "", [])
    assert log_of(bucket, 0) == b"1\n2\n3\n"


def _times(number: int, fault: Fault) -> Fault:
    """A fault that holds for so many requests."""
    left = iter(range(number))
    return lambda handler, key: next(left, None) is not None and fault(handler, key)


def _busy(handler: Handler, key: str) -> bool:
    handler.answer(503, b"<Code>SlowDown</Code>")
    return True


def _cut_before(handler: Handler, key: str) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def _cut_in_the_answer(handler: Handler, key: str) -> bool:
    handler.wfile.write(b"HTTP/1.1 2")
    return _cut_before(handler, key)


@pytest.mark.promise(9)
@pytest.mark.parametrize("fault", [_busy, _cut_before, _cut_in_the_answer])
def test_store_fails_for_a_while(stage: Stage, bucket: Bucket, fault: Fault) -> None:
    """Every third request, from the first to the manifest."""
    count = iter(range(10_000))
    bucket.fault = lambda handler, key: next(count) % 3 != 2 and fault(handler, key)
    steps = [RunStep(command="echo a; head -c 5000000 /dev/zero; echo b"), RunStep(command="echo c")]
    assert stage.play(*steps, logs=target(bucket)) == 0
    assert log_of(bucket, 0) == b"a\n" + bytes(5_000_000) + b"b\n"
    assert log_of(bucket, 1) == b"c\n"
    assert manifest_of(bucket).seal == "complete"


@pytest.mark.promise(9)
def test_store_that_stalls_stops_the_step(stage: Stage, bucket: Bucket) -> None:
    """Back pressure: what it printed is bounded by the queue, and all of it arrives in the end."""
    gate = threading.Event()
    bucket.fault = lambda handler, key: "segments" in key and not gate.wait(60)
    command = "i=0; while [ $i -lt 60 ]; do head -c 1000000 /dev/zero; i=$((i+1)); echo $i >../wrote; done"
    stage.prepare(RunStep(command=command), logs=target(bucket))
    agent = stage.start_agent()
    main = stage.start_main()
    with pytest.raises(Exception, match="timed out"):
        main.wait(3)
    assert 0 < int((stage.home / "wrote").read_text()) < 40
    gate.set()
    assert main.wait(60) == 0
    assert agent.wait(60) == 0
    assert len(log_of(bucket, 0)) == 60_000_000


def test_store_that_refuses_everything(stage: Stage, bucket: Bucket) -> None:
    refused = target(bucket).model_copy(update={"claim": f"{bucket.address}/pre/1/started?signature=expired"})
    assert stage.play(RunStep(command="echo ran >../ran"), logs=refused) == 125
    assert stage.receipt.store_refused
    assert "403" in stage.receipt.message
    assert "403" in stage.words("agent.log")
    assert not (stage.home / "ran").exists()


def test_store_that_refuses_the_manifest(stage: Stage, bucket: Bucket) -> None:
    """Without its seal a task is no success."""

    def fault(handler: Handler, key: str) -> bool:
        if key.endswith("manifest.json"):
            handler.answer(403, b"AccessDenied")
            return True
        return False

    bucket.fault = fault
    assert stage.play(RunStep(command="echo a"), logs=target(bucket)) == 125
    assert stage.receipt.store_refused
    assert not stage.receipt.sealed


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    patience = Patience()
    patience.until = 0
    url = Url({"url": f"http://127.0.0.1:{port}/", "prefix": "p/", "fields": {}}, patience, str(tmp_path))
    with pytest.raises(StoreRefused, match="does not answer"):
        url.put("a", b"")


def test_archive_goes_up_and_comes_down(stage: Stage, bucket: Bucket) -> None:
    content = Content(source_dir=".", paths=["**"])
    steps = [
        RunStep(command="echo x >a; head -c 3000000 /dev/urandom >b"),
        SaveToWorkspaceStep(contents=[content]),
    ]
    assert stage.play(*steps, logs=target(bucket), archives=target(bucket)) == 0, log_of(bucket, 1)
    record = manifest_of(bucket).archives[0]
    assert json.loads(bucket.objects["pre/1/1.json"])["sha256"] == record.sha256
    source = f"{bucket.address}/pre/1/{record.file}?signature=x"
    stored = StoredArchive(
        task="t", step=1, file=record.file, source=source, size=record.size, sha256=record.sha256
    )
    bucket.fault = _times(2, _busy)
    other = Stage(stage.folder / "other", stage.shell, stage.python)
    step = RestoreWorkspaceStep(dest_dir="~/there")
    assert other.play(step, restore=[stored]) == 0, other.log(0)
    assert (other.home / "there" / "b").read_bytes() == (stage.cwd / "b").read_bytes()
    gone = stored.model_copy(update={"source": f"{bucket.address}/pre/none"})
    third = Stage(stage.folder / "third", stage.shell, stage.python)
    assert third.play(step, restore=[gone]) == 1
    assert b"404" in third.log(0)
