"""The entry that Streamlit runs for every browser tab: password, navigation, and the sidebar that both pages share."""

from __future__ import annotations

import hmac
from pathlib import Path

import streamlit as st

from app.adapters import NONE
from app.errors import AppError
from app.main import shared
from app.views import chat, documents
from app.views.render import STYLE, plain
from app.views.text import t
from finetune.errors import FinetuneError


def admitted() -> bool:
    """Whether the visitor may come in; asks for the password where one is set."""
    password = shared().services.settings.password
    if not password or st.session_state.get("admitted"):
        return True
    with st.form("door", width=360):
        given = st.text_input(t("password"), type="password")
        if st.form_submit_button(t("enter"), type="primary"):
            if hmac.compare_digest(given.encode(), password.encode()):
                st.session_state.admitted = True
                st.rerun()
            st.error(t("wrong_password"))
    return False


def adapter() -> str | None:
    """The choice of who answers, where there is one; None is that of the settings."""
    services = shared().services
    if not (names := services.adapters.fitting()):
        return None
    try:
        usual = services.adapter() or NONE
    except (AppError, FinetuneError) as error:
        st.error(plain(str(error)))
        usual = NONE
    known = [NONE, *names] if usual in (NONE, *names) else [NONE, usual, *names]
    chosen = st.session_state.get("chosen_adapter") or usual
    index = known.index(chosen) if chosen in known else 0
    return st.selectbox(
        t("adapter"), known, index=index, format_func=lambda name: t("no_adapter") if name == NONE else name
    )


def sidebar() -> None:
    """The choice of knowledge base, k and adapter, kept in `st.session_state` with `chosen_` before their names."""
    state = shared()
    settings = state.services.settings
    known = state.services.ingestor.kbs()
    # A key's value is dropped when its widget is not shown on a page; the copy keeps the choice.
    chosen = st.session_state.get("chosen_kb", settings.kb)
    with st.sidebar:
        index = known.index(chosen) if chosen in known else 0
        kb = st.selectbox(t("kb"), known, index=index)
        k = st.slider(t("k"), 1, max(12, settings.k), st.session_state.get("chosen_k", settings.k), help=t("k_help"))
        st.session_state.chosen_kb, st.session_state.chosen_k = kb, k
        st.session_state.chosen_adapter = adapter()
        if state.fault:
            st.error(plain(state.fault))
        st.caption(plain(state.services.model_name))


# A file of ours: for an emoji or a named icon the browser would fetch the picture from elsewhere.
st.set_page_config(page_title="Paddock", page_icon=Path(__file__).with_name("icon.png"), layout="centered")
st.html(STYLE)
if admitted():
    current = st.navigation(
        [
            st.Page(chat.page, title=t("ask_page"), icon=":material/forum:", url_path="ask", default=True),
            st.Page(documents.page, title=t("documents_page"), icon=":material/folder_open:", url_path="documents"),
        ]
    )
    sidebar()
    current.run()
