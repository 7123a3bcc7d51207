"""Secrets of the worker's machine, for executors that hand their values to tasks themselves.

From a dotenv file if the settings name one, else from the worker's environment, never from both: one place
to look at is worth more than a rule of precedence. An empty value is an error: a step that is given an empty
password fails later and says less; who wants an empty variable writes `""` in the run file.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from runyard.errors import ConfigError
from runyard.executors.base import Secrets
from runyard.settings import Settings

PREFIX = "RUNYARD_SECRET_"


class EnvironmentSecrets:
    """``RUNYARD_SECRET_<NAME>`` of an environment; the name in capitals, what is no letter or digit as `_`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def get(self, name: str) -> str:
        variable = PREFIX + re.sub(r"[^A-Za-z0-9]", "_", name).upper()
        return _checked(name, self._environ.get(variable), f"the worker's environment variable {variable}")

    def all(self) -> Mapping[str, str]:
        return {
            name.removeprefix(PREFIX): value for name, value in self._environ.items() if name.startswith(PREFIX)
        }


class FileSecrets:
    """A dotenv file that only its owner may read: ``NAME=value``, values of several lines in double quotes.

    It is read anew for each secret, so that a changed file needs no restart of the worker. Raises
    ConfigError if it is missing or may be read by others.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, name: str) -> str:
        return _checked(name, self.all().get(name), f"the secrets file {self._file}")

    def all(self) -> Mapping[str, str]:
        try:
            with open(self._file, encoding="utf-8") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                if mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(
                        f"the secrets file {self._file} may be read by others (mode {stat.S_IMODE(mode):04o})",
                        remedy=f"chmod 600 {self._file}",
                    )
                values = dotenv_values(stream=stream, interpolate=False)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the secrets file {self._file} cannot be read: {error}") from error
        return {name: value for name, value in values.items() if value is not None}


def open_secrets(settings: Settings) -> Secrets:
    """The secrets that the settings name."""
    if settings.secrets_file is not None:
        return FileSecrets(settings.secrets_file)
    return EnvironmentSecrets(os.environ)


def _checked(name: str, value: str | None, place: str) -> str:
    if value is None:
        raise ConfigError(f"no secret {name!r}: it was looked for in {place}")
    if not value:
        raise ConfigError(f"the secret {name!r} is empty in {place}")
    if "\0" in value:
        raise ConfigError(f"the secret {name!r} has a NUL character in {place}: no program can be given it")
    return value
