"""Where the Temporal UI of a server is."""

import contextlib
import json
from ipaddress import ip_address

from temporalio.client import Client

from runyard.settings import Settings


def find_ui(settings: Settings, client: Client | None) -> str:
    """The UI of a server that `dev` started; else, on this machine, where Temporal's dev server has it."""
    if settings.ui:
        return settings.ui
    address = client.service_client.config.target_host if client else ""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((settings.state / "server.json").read_text())
        if not address or _same(state.get("address", ""), address):
            return str(state.get("ui_url", ""))
    host, _, port = address.rpartition(":")
    return f"http://{host}:{int(port) + 1000}" if port.isdigit() and _is_loopback(host) else ""


def _same(one: str, other: str) -> bool:
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return port == other_port and (host == other_host or (_is_loopback(host) and _is_loopback(other_host)))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
