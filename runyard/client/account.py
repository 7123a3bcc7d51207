"""Who is at the keyboard, where nobody says it."""

import getpass


def account() -> str:
    """The name of this account; `unknown` where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
