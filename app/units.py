"""Sizes as people read them."""

from __future__ import annotations


def in_bytes(count: int) -> str:
    """A number of bytes as bytes, KB, MB or GB, each 1,000 of the one before."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= 0.99995 * size:  # what would be rounded to 1000.0 of the smaller unit is 1.0 of this one
            return f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"
