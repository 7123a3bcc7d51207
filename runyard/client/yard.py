"""``Runyard``: a connection to one Temporal namespace and one store.

What only some calls need is imported by them: `run start` waits for none of it.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Unpack
from urllib.parse import quote

from pydantic import JsonValue
from temporalio.client import Client, WorkflowExecution
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from runyard.client import direct, groups, listing, starting
from runyard.client.files import check, check_run_id, read_file
from runyard.client.listing import Filter, Which
from runyard.client.paging import RunPage, ids_query, read_page
from runyard.client.remote import from_rpc
from runyard.client.run import Run
from runyard.client.ui import find_ui
from runyard.errors import Conflict, InvalidRequest, NotFound, RunyardError, ServerUnavailable, StoreError
from runyard.records.runs import read_result
from runyard.settings import Settings
from runyard.snapshot.take import Taken
from runyard.spec.group import LineView
from runyard.spec.plan import Plan, Source
from runyard.spec.run import RUNS_QUEUE, WORKFLOW, RunRequest, RunView
from runyard.store.base import ObjectStore
from runyard.store.open import open_store
from runyard.temporal import connect

if TYPE_CHECKING:
    from runyard.client.transfer import Export
    from runyard.spec.events import Event
    from runyard.transfer.imports import Import


class Runyard:
    """Starts runs and finds them. Made by `Runyard.connect`."""

    def __init__(
        self,
        client: Client | None,
        store: ObjectStore,
        *,
        settings: Settings,
        ui: str = "",
        away: ServerUnavailable | None = None,
    ) -> None:
        """Without a ``client`` only the store answers, and ``away`` is why. ``ui``: the Temporal UI's address."""
        self._client = client
        self._away = away
        self.store = store
        self.settings = settings
        self._ui = ui.rstrip("/")

    @classmethod
    @contextlib.asynccontextmanager
    async def over(
        cls, client: Client, settings: Settings | None = None, *, ui: str = ""
    ) -> AsyncIterator["Runyard"]:
        """On a connection that is there already; it must have the data converter of `runyard.temporal`."""
        settings = settings or Settings()
        store = open_store(settings)
        try:
            yield cls(client, store, settings=settings, ui=ui)
        finally:
            await store.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls,
        settings: Settings | None = None,
        *,
        address: str | None = None,
        namespace: str | None = None,
        ui: str | None = None,
        offline: bool = False,
    ) -> AsyncIterator["Runyard"]:
        """Connect by Temporal's environment variables and profile file; arguments win over both.

        With ``offline`` a server that does not answer is no error: what the store keeps of ended runs can
        be read all the same. Raises ServerUnavailable.
        """
        settings = settings or Settings()
        client, away = None, None
        try:
            client = await connect(address=address, namespace=namespace)
        except ServerUnavailable as error:
            if not offline:
                raise
            away = error
        found = ui if ui is not None else find_ui(settings, client)
        store = open_store(settings)
        try:
            yield cls(client, store, settings=settings, ui=found, away=away)
        finally:
            await store.close()

    @property
    def online(self) -> bool:
        """Whether a server answered at the start."""
        return self._client is not None

    @property
    def client(self) -> Client:
        """Temporal's own client. Raises ServerUnavailable where there is none."""
        if self._client is None:
            raise self._away or ServerUnavailable()
        return self._client

    async def start(
        self,
        file: str | Path | Mapping[str, JsonValue],
        run: str = "",
        *,
        tasks: Iterable[str] = (),
        group: str = "",
        group_policy: str = "",
        project: str = "",
        cache_group: str = "",
        cache_fallback: str = "",
        cache_read_only: bool = False,
        source: Source | None = None,
        local: str | Path | None = None,
        ignored: bool = False,
        message: str = "",
        environment: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        executor: str | None = None,
        owner: str = "",
        priority: int = 3,
        trigger: str = "manual",
        traceparent: str = "",
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run of a run file: a path, its text, or the object itself.

        ``local`` is a folder of a git checkout: `clone` then yields the checkout as it is now, on whatever machine
        the task runs; with ``ignored`` also what git ignores. ``priority`` is 1 (first) to 5. ``traceparent`` is
        the span, as W3C writes it, that the run's own are to be below. With an
        ``idempotency_key`` a second start gives the run that the first one made, also when that has ended. Raises
        InvalidRunFile and InvalidRequest before anything is started, NotFound for a file that is not there,
        Conflict when ``run_id`` is taken.
        """
        text, name = await asyncio.to_thread(read_file, file)
        if local is not None:
            source = await direct.find_source(Path(local), source)
        request = RunRequest(
            file=text,
            file_name=name,
            run=run,
            tasks=list(tasks),
            group=group,
            group_policy=group_policy,
            project=project,
            cache_group=cache_group,
            cache_fallback=cache_fallback,
            cache_read_only=cache_read_only,
            executor=executor or self.settings.executor,
            owner=owner,
            priority=priority,
            trigger=trigger,
            source=source or Source(),
            message=message,
            environment=dict(environment or {}),
            annotations=dict(annotations or {}),
            traceparent=traceparent,
        )
        return await self.submit(
            request,
            run_id=run_id,
            idempotency_key=idempotency_key,
            local=None if local is None else Path(local),
            ignored=ignored,
        )

    async def restart(
        self,
        run: str,
        *,
        failed: bool = False,
        from_start: bool = False,
        tasks: Iterable[str] = (),
        file: str | Path | Mapping[str, JsonValue] | None = None,
        environment: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        executor: str | None = None,
        owner: str | None = None,
        priority: int | None = None,
        traceparent: str | None = None,
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Start a run that keeps what is good of an earlier one: what succeeded, is unchanged and still there.

        ``failed`` is what happens anyway when that run did not succeed; ``from_start`` keeps nothing; ``tasks``
        run again in any case, with all that depends on them. What is not given is the earlier run's, the file
        too. Raises NotFound, Conflict (it has not ended; ``run_id`` is taken), InvalidRequest, InvalidRunFile.
        """
        from runyard.client import restarting

        given: dict[str, object] = {
            "environment": None if environment is None else dict(environment),
            "annotations": None if annotations is None else dict(annotations),
            "executor": executor,
            "owner": owner,
            "priority": priority,
            "traceparent": traceparent,
        }
        if file is not None:
            given["file"], given["file_name"] = await asyncio.to_thread(read_file, file)
        request = restarting.make_request(run, failed=failed, from_start=from_start, tasks=tasks, given=given)
        whole, plan = await restarting.check_restart(self, request)
        # a key of its own: never the one that the earlier run was started by
        key = f"restart of {run}: {idempotency_key}" if idempotency_key else None
        return await self.submit(request, run_id=run_id, idempotency_key=key, plan=plan, whole=whole)

    async def submit(
        self,
        request: RunRequest,
        *,
        run_id: str | None = None,
        idempotency_key: str | None = None,
        plan: Plan | None = None,
        whole: RunRequest | None = None,
        local: Path | None = None,
        ignored: bool = False,
        told: Callable[[Taken], None] = lambda _: None,
    ) -> Run:
        """Start what the request says. ``plan`` is what `check` made of it, where that has been done already.

        ``whole`` is a restart's request with what it takes over, for those who look at the run. With ``local``
        from the checkout around this folder; ``told`` hears of its snapshot before the run starts.
        """
        if run_id and idempotency_key:
            raise InvalidRequest("a run has a `run_id` or an `idempotency_key`, not both")
        shown = whole or request
        plan = plan or await check(shown)
        name, size = plan.run.name, len(plan.tasks)
        made = starting.keyed_run_id(name, idempotency_key) if idempotency_key else starting.new_run_id(name)
        chosen, token = check_run_id(run_id or made), secrets.token_hex(8)
        if (run_id or idempotency_key) and await self._has_ended(chosen):  # Temporal may have forgotten it
            if idempotency_key:
                return self.run(chosen)
            raise _taken(chosen)
        if local is not None:
            request, taken = await direct.with_snapshot(
                self.store, request, plan, local, run_id=chosen, ignored=ignored
            )
            shown = request
            told(taken)
        try:
            await self.client.start_workflow(
                WORKFLOW,
                request,
                id=chosen,
                task_queue=RUNS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
                if idempotency_key
                else WorkflowIDConflictPolicy.FAIL,
                static_summary=starting.summary(name, shown.source, tasks=size),
                static_details=starting.details(chosen, shown, name=name),
                search_attributes=starting.search_attributes(shown, tasks=size),
                memo=starting.memo(shown, name=name, token=token),
                priority=starting.priority(shown),
            )
        except WorkflowAlreadyStartedError as error:
            if not idempotency_key and not await self._is_mine(chosen, token):
                raise _taken(chosen) from error
        except RPCError as error:
            raise self.explain(error, what=f"the start of {chosen}") from error
        return self.run(chosen)

    async def export_run(self, run_id: str, target: str | Path | BinaryIO) -> "Export":
        """Write a run that has ended, with all that it refers to, into one tar: a path, or an open file.

        Logs and archives of tasks that it kept are among them, and of a direct run its checkout. No secret is. A
        path has its file when that is whole. Raises NotFound, Conflict (it has not ended; a cleanup took
        something meanwhile), InvalidRequest (the path), StoreError.
        """
        from runyard.client.transfer import export_to

        return await export_to(self, run_id, Path(target) if isinstance(target, str) else target)

    async def import_run(self, source: str | Path | BinaryIO) -> "Import":
        """Take in a run that `export_run` wrote, here or elsewhere: a path, or an open file, which may be a pipe.

        It keeps its id and is then listed, shown and restarted as any that has ended; its retention begins now.
        The same file a second time changes nothing. Raises InvalidExport, NewerExport, DamagedExport, Conflict
        (another run has its id), NotFound (the path), ServerUnavailable, StoreError; then nothing is imported.
        """
        from runyard.client.transfer import import_from

        return await import_from(self, Path(source) if isinstance(source, str) else source)

    async def _is_mine(self, run_id: str, token: str) -> bool:
        """Whether the run that has our id is the one that we asked for: a request may arrive twice."""
        try:
            description = await self.client.get_workflow_handle(run_id).describe()
        except RPCError:
            return False
        return (await description.memo()).get("token") == token

    def run(self, run_id: str) -> Run:
        """A handle; nothing is asked yet. Raises InvalidRequest for what can be no run's id."""
        return Run(self, check_run_id(run_id))

    async def list(self, *, limit: int = 50, after: str = "", **which: Unpack[Which]) -> tuple[RunView, ...]:
        """Runs without their tasks, as `page` gives them, but as many as there are up to ``limit``."""
        found: list[RunView] = []
        while len(found) < limit:
            page = await self.page(limit=limit - len(found), after=after, **which)
            found += page.runs
            if not (after := page.next):
                break
        return tuple(found)

    async def page(self, *, limit: int = 50, after: str = "", **which: Unpack[Which]) -> RunPage:
        """A page of the list of runs, and the cursor for ``after`` of the next one.

        Open runs first, those started last first; then ended ones, those that ended last first, also those that
        Temporal has forgotten. ``group`` is one group, ``below`` a group and all below it; ``since`` is about the
        start; ``text`` is in the id, the name or the cause. A page may be short where little matches: the list
        goes on while there is a ``next``. A run that ends between two pages may come as open and as ended.
        Raises InvalidRequest, ServerUnavailable, StoreError.
        """
        wanted = Filter(**which)
        if wanted.since is not None and wanted.since.tzinfo is None:
            raise InvalidRequest("`since` is a time with its zone")
        return await read_page(self, wanted, limit=max(1, limit), after=after)

    async def events(
        self, cursor: str | None = None, *, run: str = "", follow: bool = True, interval_s: float = 1.0
    ) -> AsyncIterator["Event"]:
        """What happens to runs and their tasks, from a cursor on; without one all that is still known.

        Of all runs, for ever, or of one ``run``, to its end; without ``follow`` only what there is. Each event
        comes at least once, those of one run in their order, and the same event always has the same ``id``. To go
        on after a break give the ``cursor`` of the last event, or a time (ISO 8601), to the same kind of feed.
        Raises InvalidRequest (no cursor), NotFound (the ``run``), ServerUnavailable, StoreError; what the store
        remembers can be read without a server.
        """
        from runyard.client.feed import read_feed

        if run:
            check_run_id(run)
        if follow and not run:
            self.client  # noqa: B018 - raises why there is no server
        reading = read_feed(self, cursor=cursor or "", run=run, follow=follow, interval_s=interval_s)
        async with contextlib.aclosing(reading) as events:
            async for event in events:
                yield event

    async def line(self, group: str) -> LineView:
        """Who of this group's root runs and who waits, now. Raises InvalidRequest, NotFound, ServerUnavailable."""
        try:
            return await groups.read_line(self.client, group)
        except RPCError as error:
            raise self.explain(error, what=f"the line of {group}") from error

    async def lines(self, *, limit: int = 100) -> tuple[LineView, ...]:
        """All lines: of roots of groups, and of executors whose runs are limited. Raises ServerUnavailable."""
        try:
            return await groups.list_lines(self.client, limit=limit)
        except RPCError as error:
            raise self.explain(error, what="the list of lines") from error

    async def visible(self, query: str, *, limit: int, page_size: int) -> AsyncIterator[tuple[RunView, datetime]]:
        """What Temporal lists, in its order, and the start that it goes by: of a run's last execution.

        Raises ServerUnavailable; without a server there is nothing.
        """
        if self._client is None:
            return
        try:
            async for each in self._client.list_workflows(query, limit=limit, page_size=page_size):
                yield self.with_ui(listing.view_of(each, await each.memo())), each.start_time
        except RPCError as error:
            raise self.explain(error, what="the list of runs") from error

    async def known(self, run_ids: Sequence[str]) -> set[str]:
        """Which of these runs Temporal shows."""
        if not run_ids:
            return set()
        asked, size = ids_query(run_ids), len(run_ids)
        return {view.id async for view, _ in self.visible(asked, limit=size * 20, page_size=1_000)}

    async def stored(self, run_id: str) -> RunView | None:
        """What the store keeps of a run that has ended, or None."""
        try:
            return self.with_ui(await read_result(self.store, run_id))
        except NotFound:
            return None

    async def _has_ended(self, run_id: str) -> bool:
        """As far as the store says: where it does not answer, a start does not wait for it."""
        try:
            return await self.stored(run_id) is not None
        except StoreError:
            return False

    async def unknown_run(self, run_id: str) -> NotFound:
        """The error for a run that is nowhere, with the ids that are like it."""
        ids = [view.id for view in await self.list(limit=200)]
        near = get_close_matches(run_id, ids, n=3) or [each for each in ids if each.startswith(run_id)][:3]
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        return NotFound(f"there is no run {run_id}", remedy=hint)

    def ui_of(self, run_id: str) -> str:
        """The run's address in the Temporal UI, empty where the UI's address is not known."""
        namespace = self._client.namespace if self._client else "default"
        return f"{self._ui}/namespaces/{namespace}/workflows/{quote(run_id, safe='')}" if self._ui else ""

    def with_ui(self, view: RunView) -> RunView:
        return view.model_copy(update={"ui": self.ui_of(view.id)})

    def explain(self, error: RPCError, *, what: str) -> RunyardError:
        config = self.client.service_client.config
        return from_rpc(error, what=what, address=config.target_host, namespace=self.client.namespace)

    def summarise(self, execution: WorkflowExecution, memo: Mapping[str, object], *, cause: str = "") -> RunView:
        return self.with_ui(listing.view_of(execution, memo, cause=cause))


def _taken(run_id: str) -> Conflict:
    return Conflict(f"a run with the id {run_id} exists already", remedy="Choose another id, or leave it out.")
