"""The sidebar's choice of which documents are asked."""

from __future__ import annotations

import datetime

import streamlit as st

from app.main import shared
from app.views.render import plain
from app.views.text import t
from ingest.errors import IngestError
from ingest.filter import Filter
from ingest.loaders import LOADERS
from ingest.sync import Ingestor

EARLIEST = datetime.date(1970, 1, 1)


def choose(kb: str) -> tuple[Filter | None, bool]:
    """What is chosen for this knowledge base, None for all of its documents; and whether a question can be asked."""
    ingestor: Ingestor = shared().services.ingestor
    types = sorted(suffix.lstrip(".") for suffix in LOADERS)
    with st.sidebar, st.expander(t("limit"), icon=":material/filter_alt:"):
        values = {
            "source": st.text_input(
                t("limit_source"), placeholder="2026/*.pdf", key=f"limit-source-{kb}", persist_state="session"
            ),
            "type": st.multiselect(
                t("limit_type"), types, placeholder=t("any"), key=f"limit-type-{kb}", persist_state="session"
            ),
            "language": st.multiselect(
                t("limit_language"),
                ingestor.manifest.languages(kb),
                placeholder=t("any"),
                key=f"limit-lang-{kb}",
                persist_state="session",
            ),
            "after": _day("limit_after", kb),
            "before": _day("limit_before", kb),
        }
    try:
        chosen = Filter.of(values)
    except IngestError as error:
        st.sidebar.error(plain(str(error)))
        return None, False
    if chosen:
        st.sidebar.caption(t("limited", filter=plain(str(chosen))))
    return chosen or None, True


def _day(name: str, kb: str) -> datetime.date | None:
    return st.date_input(
        t(name), value=None, min_value=EARLIEST, format="YYYY-MM-DD", key=f"{name}-{kb}", persist_state="session"
    )
