"""Settings: from the environment (``RUNYARD_*``), then from a TOML file, then these defaults.

The file is ``$RUNYARD_SETTINGS``, else ``~/.config/runyard/settings.toml``; its keys are the field names.
Temporal's own address, namespace, TLS and keys are not here: they come from Temporal's environment
variables and profile file. There is no global settings object: whoever needs one is given it.
"""

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

HEARTBEAT_S: Final = 3.0
"""Short, so that a dead worker's tasks have another within five seconds."""


def default_state() -> Path:
    """Where `dev` and `exec` keep their state: ``$XDG_STATE_HOME/runyard``, else ``~/.local/state/runyard``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "runyard"


class Settings(BaseSettings):
    """Every field is also an environment variable: ``executor`` is ``RUNYARD_EXECUTOR``."""

    model_config = SettingsConfigDict(env_prefix="RUNYARD_", extra="forbid", frozen=True)

    executor: str = "local"  # the executor, and by it the task queue, that `run start` asks for
    state: Path = Field(default_factory=default_state)

    project_runs: int | None = Field(default=None, ge=1)  # runs at a time of one root of groups; for workers
    executor_runs: dict[str, Annotated[int, Field(ge=1)]] = {}  # runs at a time by executor; for workers
    # for workers: so long after its last heartbeat a worker is taken for dead, and another takes its tasks over;
    # each running task sends one heartbeat in four fifths of that time
    heartbeat_s: float = Field(default=HEARTBEAT_S, ge=1, le=300)

    ui: str = ""  # address of the Temporal UI, for links; "" = known only for servers of this machine

    log_format: Literal["text", "json"] = "text"  # of a worker's own log, on its standard error
    # of the same; None = `info` for `worker`, `warning` for `dev`
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    metrics_address: str = ""  # HOST:PORT where workers serve /metrics, /healthz and /readyz; "" = nowhere

    store: Literal["posix", "posixflat", "s3"] = "posix"
    store_folder: Path | None = None  # posix; None = `state`/store

    s3_endpoint: str = ""  # https://HOST or http://HOST:PORT; "" = AWS, by the region
    s3_public_endpoint: str = ""  # where tasks reach the same store, if elsewhere
    s3_bucket: str = ""
    s3_prefix: str = ""  # all keys begin with it: several yards can share a bucket
    s3_region: str = ""  # "" = AWS_REGION, else us-east-1, which is MinIO's too
    s3_ca_file: Path | None = None  # PEM; trusted besides what the system trusts
    s3_access_key: str = ""  # "" = s3_credentials_file, else the AWS_… variables, else ~/.aws/credentials
    s3_secret_key: SecretStr = SecretStr("")
    s3_session_token: SecretStr = SecretStr("")
    s3_credentials_file: Path | None = None  # as AWS has it; AWS_PROFILE says which profile
    s3_machine_role: bool = False  # ask the cloud's metadata service for the role of this machine
    s3_sts_endpoint: str = ""  # where a web identity is exchanged; "" = AWS_ENDPOINT_URL_STS, else AWS's own

    local_slots: int | None = Field(default=None, ge=1)  # tasks at once; None = twice the cores, at least 4
    local_folder: Path | None = None  # where tasks work; None = `state`/tasks
    local_keep_folders: bool = False  # keep a task's folder after its end, to look into it
    local_pass_environment: list[str] = []  # variables of the worker that tasks get too; `*` is allowed

    secrets_file: Path | None = (
        None  # dotenv file; without it, `RUNYARD_SECRET_<NAME>` in the worker's environment
    )
    log_bytes: int = Field(default=1 << 30, ge=1024)  # cap of one step's log

    kubernetes_kubeconfig: Path | None = None  # None = inside a pod its service account, else $KUBECONFIG
    kubernetes_context: str = ""  # of the kubeconfig; "" = its current one
    kubernetes_namespace: str = ""  # where pods are made; "" = the context's, or the worker's own
    kubernetes_agent_image: str = ""  # the image with the agent; there is no default, since versions must agree
    kubernetes_agent_command: list[str] = ["python3", "-I", "-S", "/opt/runyard/agent.pyc"]
    kubernetes_template: Path | None = None  # partial manifest of a pod, laid over every one
    kubernetes_allow: list[str] = []  # what run files may ask for in `pod`, and `privileged`
    kubernetes_secrets: str = "{name}/value"  # which Secret and key `{from_secret: name}` means
    kubernetes_pods: int | None = Field(default=None, ge=1)  # live pods at once; None = what quotas leave
    # main and agent both under it: for namespaces that are `restricted`
    kubernetes_one_uid: int | None = Field(default=None, ge=1)
    kubernetes_pull_patience_s: float = Field(default=60, ge=0)  # how long an image that cannot be pulled is tried
    kubernetes_deadline_s: float = Field(default=7 * 24 * 3600, gt=0)  # of a pod whose task has no run timeout
    kubernetes_copy_log: bool = True  # the agent prints what it stores: for `kubectl logs` and log collectors
    kubernetes_spool_bytes: int = Field(default=1 << 30, ge=1 << 20)  # log that a pod may hold back for the store

    # how long things stay after their run's end: `inf` = for ever, 0 = not at all (see `runyard cleanup`)
    keep_logs_days: float = Field(default=30, ge=0)
    keep_archives_days: float = Field(default=7, ge=0)  # of workspaces; snapshots of checkouts too
    keep_runs_days: float = Field(default=90, ge=0)  # the record; what a run has of logs and archives goes with it
    keep_runs_per_group: int | None = Field(default=None, ge=1)  # the newest of each group that have ended
    keep_bytes: int | None = Field(default=None, ge=0)  # of all logs and archives; the oldest go first
    keep_caches_days: float = Field(default=30, ge=0)  # since their last use
    keep_cache_bytes: int | None = Field(
        default=None, ge=0
    )  # of each cache group; the least recently used go first
    cleanup_every_s: float = Field(default=3600, ge=60)  # how often the schedule starts a cleanup
    cleanup_objects_per_s: float | None = Field(default=None, gt=0)  # deletes at most so many; None = no limit
    cleanup_executors: list[str] = ["local", "kubernetes"]  # whose pods it looks after, beside `executor`

    @property
    def posix_folder(self) -> Path:
        return self.store_folder or self.state / "store"

    @property
    def tasks_folder(self) -> Path:
        return self.local_folder or self.state / "tasks"

    @property
    def slots(self) -> int:
        return self.local_slots or max(4, 2 * (os.cpu_count() or 1))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("RUNYARD_SETTINGS") or Path.home() / ".config" / "runyard" / "settings.toml"
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=Path(file))
