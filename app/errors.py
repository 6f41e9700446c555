"""What can go wrong in the application itself, in one line for the user."""


class AppError(Exception):
    """A setting, file or request that cannot be used; the message says why and what to do."""


class Misuse(AppError):
    """Words on the command line that do not go together, or that no option takes: exit 2, as click's own errors."""
