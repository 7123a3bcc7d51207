from pathlib import Path

import pytest

from runyard.errors import ConfigError
from runyard.executors.secrets import EnvironmentSecrets, FileSecrets, open_secrets
from runyard.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.env"
    path.touch(mode=0o600)
    return path


def test_values_of_several_lines_and_dollars_are_taken_as_they_are(file: Path) -> None:
    file.write_text("KEY=\"-----BEGIN-----\nabc\n-----END-----\n\"\nPRICE='$5 $HOME'\nPLAIN=x y\n")
    secrets = FileSecrets(file)
    assert secrets.get("KEY") == "-----BEGIN-----\nabc\n-----END-----\n"
    assert secrets.get("PRICE") == "$5 $HOME"
    assert secrets.get("PLAIN") == "x y"
    assert set(secrets.all()) == {"KEY", "PRICE", "PLAIN"}


def test_a_changed_file_is_read_anew(file: Path) -> None:
    secrets = FileSecrets(file)
    file.write_text("A=1\n")
    assert secrets.get("A") == "1"
    file.write_text("A=2\n")
    assert secrets.get("A") == "2"


@pytest.mark.parametrize("text", ["A=1\n", "B=\n", "B\n", 'B=""\n'])
def test_missing_and_empty_name_the_place_and_no_value(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        FileSecrets(file).get("B")
    assert "'B'" in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.write_text("A=hidden\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="read by others") as caught:
        FileSecrets(file).get("A")
    assert "chmod 600" in caught.value.remedy
    assert "hidden" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        FileSecrets(tmp_path / "none").get("A")
    file.write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        FileSecrets(file).get("A")


def test_names_become_variables() -> None:
    secrets = EnvironmentSecrets({"RUNYARD_SECRET_NPM_TOKEN": "t", "RUNYARD_SECRET_EMPTY": "", "OTHER": "x"})
    assert secrets.get("npm-token") == "t"
    assert secrets.get("NPM_TOKEN") == "t"
    with pytest.raises(ConfigError, match="RUNYARD_SECRET_OTHER"):
        secrets.get("other")
    with pytest.raises(ConfigError, match="empty"):
        secrets.get("empty")
    assert set(secrets.all()) == {"NPM_TOKEN", "EMPTY"}


def test_the_settings_choose_one_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("A=of the file\n")
    monkeypatch.setenv("RUNYARD_SECRET_A", "of the environment")
    monkeypatch.setenv("RUNYARD_SECRET_B", "of the environment")
    assert open_secrets(Settings()).get("a") == "of the environment"
    secrets = open_secrets(Settings(secrets_file=file))
    assert secrets.get("A") == "of the file"
    with pytest.raises(ConfigError):
        secrets.get("B")
