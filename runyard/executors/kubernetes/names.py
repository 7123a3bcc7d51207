"""What our objects are called. Labels are for selecting, annotations for what a label cannot hold."""

import hashlib
import re

MANAGED_BY = "app.kubernetes.io/managed-by"
RUN = "runyard.dev/run"
TASK = "runyard.dev/task"
ATTEMPT = "runyard.dev/attempt"
SELECTOR = f"{MANAGED_BY}=runyard,{ATTEMPT}"

RUN_ID = "runyard.dev/run-id"
TASK_NAME = "runyard.dev/task-name"
DIGEST = "runyard.dev/digest"
OWNER = "runyard.dev/owner"  # "PROCESS OWNER"
DEADLINE = "runyard.dev/deadline-seconds"
GRACE = "runyard.dev/grace-seconds"
ENDING = "runyard.dev/ending"  # "REASON MESSAGE": written before we end a pod that runs
SHOWN = "kubectl.kubernetes.io/default-container"

OURS = (RUN_ID, TASK_NAME, DIGEST, OWNER, DEADLINE, GRACE, ENDING)

MAIN = "main"
AGENT = "agent"
SERVICE = "svc-"

ASSIGNMENT_KEY = "assignment"
SCRIPT_KEY = "script"

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def label_value(text: str) -> str:
    """``text`` where it may be a label's value, else what is left of it and a digest."""
    if _LABEL.fullmatch(text):
        return text
    slug = re.sub(r"[^A-Za-z0-9]+", "-", text)[:48].strip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{slug}-{digest}" if slug else digest
