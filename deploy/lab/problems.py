"""What keeps a lab from coming up, in a sentence that a person can act on."""


class Problem(Exception):
    """Printed as it is, without a traceback."""
