"""What can go wrong while reading documents, in one line for the user."""


class IngestError(Exception):
    """A document or folder cannot be used; the message says why and what to do."""
