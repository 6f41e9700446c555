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


def choose(kb: str) -> Filter | None:
    """What is chosen for this knowledge base; None for all of its documents."""
    ingestor: Ingestor = shared().services.ingestor
    with st.sidebar, st.expander(t("limit"), icon=":material/filter_alt:"):
        day = {"value": None, "min_value": EARLIEST, "format": "YYYY-MM-DD"}
        values = {
            "source": st.text_input(t("limit_source"), placeholder="2026/*.pdf", key=f"limit-source-{kb}"),
            "type": st.multiselect(t("limit_type"), sorted(x.lstrip(".") for x in LOADERS), key=f"limit-type-{kb}"),
            "language": st.multiselect(t("limit_language"), ingestor.manifest.languages(kb), key=f"limit-lang-{kb}"),
            "after": st.date_input(t("limit_after"), key=f"limit-after-{kb}", **day),
            "before": st.date_input(t("limit_before"), key=f"limit-before-{kb}", **day),
        }
        try:
            chosen = Filter.of(values)
        except IngestError as error:
            st.error(plain(str(error)))
            return None
    if not chosen:
        return None
    st.sidebar.caption(t("limited", filter=plain(str(chosen))))
    return chosen
