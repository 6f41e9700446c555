"""What can go wrong with the index, in one line for the user."""


class StoreError(Exception):
    """The index cannot be opened, read or written; the message says why and what to do."""


def other_embedder(kb: str, made_with: str, now: str) -> StoreError:
    """The error for an index whose vectors were made by another embedder than the one in use."""
    return StoreError(
        f"knowledge base '{kb}' was indexed with {made_with} but the embedder is now {now}; "
        f"run `paddock ingest --rebuild --kb {kb}`"
    )
