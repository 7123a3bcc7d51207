"""Executors by name."""

import pytest

from runyard.errors import ConfigError
from runyard.executors.open import open_executor
from runyard.settings import Settings

IMAGE = Settings(kubernetes_agent_image="runyard:1")


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-gpu", "kubernetes-eu-1"])
def test_a_queue_of_pods_has_the_name_that_it_was_asked_by(name: str) -> None:
    assert open_executor(name, IMAGE).name == name


@pytest.mark.parametrize("name", ["kubernetes-", "kubernetes-GPU", "kubernetes-a b", "kube", "local-2", ""])
def test_no_other_name_is_one(name: str) -> None:
    with pytest.raises(ConfigError, match="there are: kubernetes, kubernetes-NAME, local, memory"):
        open_executor(name, IMAGE)
