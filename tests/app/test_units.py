"""Sizes as people read them."""

from __future__ import annotations

import pytest

from app.units import in_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 KB"),
        (50_000, "50.0 KB"),
        (999_949, "999.9 KB"),
        (999_960, "1.0 MB"),
        (269_030_016, "269.0 MB"),
        (2_600_000_000_000, "2,600.0 GB"),
    ],
)
def test_a_size_in_the_unit_that_fits(count: int, text: str) -> None:
    assert in_bytes(count) == text
