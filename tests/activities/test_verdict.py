"""The verdict on an attempt: never a success without all three witnesses, and total over all that may be seen."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.verdict import judge
from runyard.dialogue import Manifest, StepRecord
from runyard.executors.base import Ended
from runyard.reasons import Reason
from runyard.spec.plan import CloneStep, RunStep, SaveToWorkspaceStep, Step

STEPS: list[Step] = [CloneStep(), RunStep(command="true"), SaveToWorkspaceStep(contents=[])]
WHOLE = Manifest(seal="complete", steps=[])
CUT = Manifest(seal="truncated", reason="cut", steps=[])

ENDED = st.builds(
    Ended,
    gone=st.booleans(),
    exit_code=st.none() | st.integers(-1, 256),
    signal=st.none() | st.integers(1, 64),
    reason=st.none() | st.sampled_from(list(Reason)),
    message=st.text(max_size=5),
    receipt=st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "0 0;",
                "1 3;",
                "7 1;",
                "sealed;",
                "term;",
                "store refused x;",
                "service failed x;",
                "timeout 1;",
                "started before;",
                "agent lost;",
            ]
        )
    ).map("".join),
)
RECORD = StepRecord(
    n=0, exit_code=0, bytes=1, lines=1, sha256="0" * 64, started_at=datetime.now(UTC), ended_at=datetime.now(UTC)
)
MANIFEST = st.none() | st.sampled_from([WHOLE, CUT, WHOLE.model_copy(update={"steps": [RECORD]})])


@pytest.mark.promise(1)
@given(ENDED, MANIFEST, st.booleans(), st.booleans())
def test_a_success_has_three_witnesses(
    ended: Ended, manifest: Manifest | None, began: bool, stopped: bool
) -> None:
    end = judge(ended, manifest, steps=STEPS, began=began, stopped=stopped)
    if end.status == "success":
        assert ended.exit_code == 0
        assert not ended.gone
        assert ended.reason is None
        assert "sealed;" in ended.receipt
        assert manifest is not None
        assert manifest.seal == "complete"
    assert (end.reason is Reason.SUCCESS) == (end.status == "success") or ended.reason is Reason.SUCCESS
    assert end.began or not began


@pytest.mark.parametrize(
    ("ended", "manifest", "stopped", "status", "reason"),
    [
        (Ended(exit_code=0, receipt="0 0;sealed;"), WHOLE, False, "success", Reason.SUCCESS),
        (Ended(exit_code=0, receipt="0 0;sealed;"), WHOLE, True, "success", Reason.SUCCESS),
        (Ended(exit_code=0, receipt="0 0;sealed;"), CUT, False, "failed", Reason.AGENT_LOST),
        (Ended(exit_code=0, receipt="0 0;sealed;"), None, False, "failed", Reason.AGENT_LOST),
        (Ended(exit_code=0, receipt="0 0;"), WHOLE, False, "failed", Reason.AGENT_LOST),
        (Ended(exit_code=0, receipt=""), None, False, "failed", Reason.AGENT_LOST),
        (Ended(gone=True, exit_code=0, receipt="0 0;sealed;"), WHOLE, False, "failed", Reason.LOST),
        (Ended(gone=True), None, True, "cancelled", Reason.CANCELLED),
        (Ended(exit_code=3, receipt="0 0;1 3;sealed;"), WHOLE, False, "failed", Reason.EXIT_CODE),
        (Ended(exit_code=1, receipt="0 1;sealed;"), WHOLE, False, "failed", Reason.CLONE_FAILED),
        (Ended(exit_code=1, receipt="0 0;1 0;2 1;sealed;"), WHOLE, False, "failed", Reason.ARCHIVE_FAILED),
        (Ended(exit_code=1, receipt="9 1;sealed;"), WHOLE, False, "failed", Reason.EXIT_CODE),
        (Ended(exit_code=137, signal=9, receipt=""), CUT, False, "failed", Reason.SIGNAL),
        (Ended(exit_code=126, receipt=""), None, False, "failed", Reason.START_ERROR),
        (Ended(exit_code=125, receipt="service failed db;"), None, False, "failed", Reason.SERVICE_FAILED),
        (Ended(exit_code=125, receipt="store refused;"), None, False, "failed", Reason.STORE_REFUSED),
        (Ended(exit_code=125, receipt="0 0;store refused it;"), CUT, False, "failed", Reason.STORE_REFUSED),
        (Ended(exit_code=125, receipt="1 3;store refused it;"), None, False, "failed", Reason.EXIT_CODE),
        (Ended(exit_code=137, reason=Reason.OOM_KILLED, receipt=""), CUT, False, "failed", Reason.OOM_KILLED),
        (Ended(reason=Reason.TIMEOUT_PENDING), None, False, "failed", Reason.TIMEOUT_PENDING),
    ],
)
def test_the_table(ended: Ended, manifest: Manifest | None, stopped: bool, status: str, reason: Reason) -> None:
    end = judge(ended, manifest, steps=STEPS, began=False, stopped=stopped)
    assert (end.status, end.reason) == (status, reason)
