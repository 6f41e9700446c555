"""What can go wrong with the index, in one line for the user."""


class StoreError(Exception):
    """The index cannot be opened, read or written; the message says why and what to do."""
