"""Where a task runs, as users write it: containers, volumes, services, credentials, resources."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from runyard.model import Input
from runyard.spec import plan, values
from runyard.spec.values import Filled, Flag, PositiveDuration, Size, Text


class RegistryAuth(Input):
    """Credentials of a registry of images."""

    type: Literal["basic", "encodedauth"] = "basic"
    username: values.Sourced = ""
    password: values.Sourced = ""
    auth: values.Sourced = Field("", description="For `encodedauth`: base64 of user:password")

    @model_validator(mode="after")
    def _whole(self) -> "RegistryAuth":
        wanted = ("auth",) if self.type == "encodedauth" else ("username", "password")
        missing = [key for key in wanted if getattr(self, key) == ""]
        if missing:
            raise values.wrong(f"`{missing[0]}` is missing for credentials of type {self.type}")
        if any(isinstance(each, plan.FromOutput) for each in (self.username, self.password, self.auth)):
            raise values.wrong("credentials cannot come from an output", "use {from_secret: NAME}")
        return self


Registries = dict[Filled, RegistryAuth]


class Tmpfs(Input):
    size: Size | None = None


def _tmpfs(value: object) -> object:
    return {} if value is None else value


class Volume(Input):
    path: Filled = Field(description="Absolute path in the container")
    tmpfs: Annotated[Tmpfs, BeforeValidator(_tmpfs)]

    @model_validator(mode="after")
    def _absolute(self) -> "Volume":
        if not self.path.startswith("/"):
            raise values.wrong("the path of a volume is absolute", f"write /{self.path}")
        return self


def _entrypoint(value: object) -> list[str]:
    if isinstance(value, str):
        return [part for part in value.split(" ") if part]
    return [values.text(each) for each in values.words(value)]


Entrypoint = Annotated[
    list[str],
    PlainValidator(_entrypoint),
    WithJsonSchema({"anyOf": [values.STRING, values.STRINGS]}),
]


class Ready(Input):
    """How a service shows that it is ready; the first step waits for it."""

    port: values.Port | None = Field(None, description="Something listens there")
    path: Text = Field("", description="HTTP path on that port that answers with a status below 400")
    command: Text = Field("", description="A command in the service's container that ends with 0")
    timeout: PositiveDuration = 60.0

    @model_validator(mode="after")
    def _something(self) -> "Ready":
        if self.port is None and (self.path or not self.command):
            raise values.wrong("`ready` needs a `port` or a `command`")
        return self


class Container(Input):
    """The first container of a task runs its steps; the others are services, reachable on localhost."""

    image: Filled = Field(examples=["python:3.13", "{{ matrix.image }}"])
    name: Text = Field("", description="What a service is called in logs")
    environment: values.Variables = {}
    user: Text = ""
    privileged: Flag = False
    entrypoint: Entrypoint = []
    volumes: list[Volume] = []
    ready: Ready | None = None


def _containers(value: object) -> object:
    if isinstance(value, list) and not value:
        raise values.wrong("a task needs at least one container", "write `containers: [{image: …}]`")
    return value


class Runtime(Input):
    type: Literal["pod"] = "pod"
    arch: Literal["", "386", "amd64", "arm", "arm64"] = ""
    containers: Annotated[list[Container], BeforeValidator(_containers)]


class Resources(Input):
    """Request and limit both."""

    cpu: values.Cores | None = None
    memory: Size | None = None
    disk: Size | None = None


class Toleration(Input):
    """As Kubernetes has it."""

    key: Text = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Text = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Pod(Input):
    """What a task asks of a cluster; its administrator says which of these may be asked for."""

    node_selector: dict[str, Text] = Field({}, description="Labels that a node must have")
    tolerations: list[Toleration] = []
    service_account: Text = ""
    runtime_class: Text = ""
    priority_class: Text = ""
    labels: dict[str, Text] = {}
    annotations: dict[str, Text] = {}
