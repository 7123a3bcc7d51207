"""How a task ended: a pure, total function of what is known.

What the executor saw of the pod comes first, then main's receipt, then the agent's manifest. Success needs all
three: exit code 0 of the very pod, the receipt's `sealed`, and a manifest that is complete.
"""

from runyard.dialogue import Manifest
from runyard.executors.base import Ended
from runyard.reasons import Reason
from runyard.script import Receipt, parse_receipt
from runyard.spec.plan import Step
from runyard.spec.run import CacheUse, TaskEnd

_BY_STEP = {
    "clone": Reason.CLONE_FAILED,
    "save_to_workspace": Reason.ARCHIVE_FAILED,
    "restore_workspace": Reason.ARCHIVE_FAILED,
}


def judge(ended: Ended, manifest: Manifest | None, *, steps: list[Step], began: bool, stopped: bool) -> TaskEnd:
    """``began``: a step may have run (the agent wrote `started`). ``stopped``: we asked the pod to end."""
    receipt = parse_receipt(ended.receipt)
    status, reason, message, step = _decide(ended, receipt, manifest, steps, stopped)
    records = manifest.steps if manifest else []
    exit_code = receipt.steps.get(step) if step is not None else ended.exit_code
    end = TaskEnd(
        status=status,
        reason=reason,
        message=message[:500],
        exit_code=exit_code,
        step=step,
        began=began or bool(receipt.steps) or bool(records),
        started_at=min((r.started_at for r in records if r.started_at), default=ended.started_at),
        ended_at=max((r.ended_at for r in records if r.ended_at), default=ended.ended_at),
        log_bytes=sum(record.bytes for record in records),
        log_complete=manifest is not None
        and manifest.seal == "complete"
        and not any(r.truncated for r in records),
        last_line=next((record.last_line for record in reversed(records) if record.last_line), ""),
        archives=[archive.step for archive in manifest.archives] if manifest else [],
    )
    caches = _cache_use(manifest, steps)
    return end.model_copy(update={"caches": caches}) if caches else end  # what is not set is not sent


def _cache_use(manifest: Manifest | None, steps: list[Step]) -> CacheUse | None:
    restores = {n for n, step in enumerate(steps) if step.type == "restore_cache"}
    outcomes = [record.outcome for record in (manifest.caches if manifest else ()) if record.step in restores]
    return CacheUse(restores=len(outcomes), hits=outcomes.count("hit")) if outcomes else None


_Decision = tuple[str, Reason, str, int | None]


def _decide(
    ended: Ended, receipt: Receipt, manifest: Manifest | None, steps: list[Step], stopped: bool
) -> _Decision:
    ran_through = ended.exit_code == 0 and receipt.sealed and not ended.gone and ended.reason is None
    if ran_through and manifest is not None and manifest.seal == "complete":
        return "success", Reason.SUCCESS, "", None
    if stopped:
        return "cancelled", Reason.CANCELLED, "", None
    if ended.gone:
        return "failed", Reason.LOST, ended.message or Reason.LOST.sentence, None
    if ended.reason is not None:
        return "failed", ended.reason, ended.message or ended.reason.sentence, _failed_step(receipt)
    if receipt.timed_out is not None:
        name = _name(steps, receipt.timed_out)
        return "failed", Reason.TIMEOUT_STEP, f"{name} ran longer than its timeout", receipt.timed_out
    step = _failed_step(receipt)
    if step is not None:
        return _failed(steps, step, receipt.steps[step])
    return _unexplained(ended, receipt)


def _failed(steps: list[Step], step: int, code: int) -> _Decision:
    kind = steps[step].type if 0 <= step < len(steps) else "run"
    reason = _BY_STEP.get(kind, Reason.EXIT_CODE)
    return "failed", reason, f"{_name(steps, step)} ended with exit code {code}", step


def _unexplained(ended: Ended, receipt: Receipt) -> _Decision:
    """Main ended, no step failed, and yet not everything is well."""
    if receipt.started_before:
        said = "an earlier pod of this attempt began its steps, which are not run twice; how it ended is not known"
        return "failed", Reason.LOST, said, None
    if receipt.service_failed:
        return "failed", Reason.SERVICE_FAILED, receipt.message or Reason.SERVICE_FAILED.sentence, None
    if receipt.store_refused:
        return "failed", Reason.STORE_REFUSED, receipt.message or Reason.STORE_REFUSED.sentence, None
    if receipt.agent_lost or (ended.exit_code == 0 and not receipt.sealed):
        return "failed", Reason.AGENT_LOST, ended.message or Reason.AGENT_LOST.sentence, None
    if ended.signal is not None or receipt.term:
        by = f"signal {ended.signal}" if ended.signal is not None else "a request to end"
        return "failed", Reason.SIGNAL, f"the task was ended by {by} that did not come from Runyard", None
    if ended.exit_code == 0:
        return "failed", Reason.AGENT_LOST, "all steps ended, but what they wrote is not whole in the store", None
    return "failed", Reason.START_ERROR, ended.message or f"main ended with exit code {ended.exit_code}", None


def _failed_step(receipt: Receipt) -> int | None:
    return next((step for step, code in receipt.steps.items() if code != 0), None)


def _name(steps: list[Step], step: int) -> str:
    name = steps[step].name or steps[step].type if 0 <= step < len(steps) else ""
    return f"step {step} ({name[:80]})" if name else f"step {step}"
