"""The documents page: what is indexed and how it stands; adding and deleting documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from app.main import shared
from app.views.render import plain
from app.views.text import t

if TYPE_CHECKING:
    from ingest.sync import DocumentStatus, Event

PER_PAGE = 25
COLOURS = {"indexed": "green", "failed": "red", "new": "gray", "changed": "orange"}


def page() -> None:
    kb = st.session_state.chosen_kb
    st.title(t("documents_page"))
    if done := st.session_state.pop("done", None):
        st.toast(done)
    upload(kb)
    for source, error in st.session_state.pop("upload_faults", []):
        st.error(t("failed", source=plain(source), error=plain(error)))
    if not shared().watching and st.button(t("refresh"), icon=":material/sync:"):
        run(kb)
        st.rerun()
    listing(kb)
    folder = shared().services.ingestor.folder(kb)
    st.caption(t("inbox", path=folder) + " " + t("watched" if shared().watching else "unwatched"))
    create_kb()


def upload(kb: str) -> None:
    """Files are written into the inbox and indexed at once, with progress; a file that cannot be taken is told."""
    from ingest.loaders import LOADERS

    number = st.session_state.setdefault("upload_number", 0)
    types = sorted(suffix.lstrip(".") for suffix in LOADERS)
    files = st.file_uploader(
        t("upload"), types, accept_multiple_files=True, key=f"upload-{number}", help=t("upload_help", kb=kb)
    )
    if not files:
        return
    ingestor = shared().services.ingestor
    faults = []
    for file in files:
        try:
            ingestor.save_upload(kb, file.name, file.getvalue())
        except Exception as error:
            faults.append((file.name, " ".join(str(error).split())))
    run(kb)
    st.session_state.upload_faults = faults
    st.session_state.upload_number = number + 1  # a new key empties the widget
    st.rerun()


def run(kb: str) -> None:
    """Brings the knowledge base in line and shows how far it is."""
    bar = st.progress(0.0, t("waiting"))

    def progress(event: Event) -> None:
        bar.progress(*fraction(event))

    try:
        report = shared().services.ingestor.sync(kb, progress=progress)
        st.session_state.done = t("indexed", n=report.added, changed=report.changed + report.renamed)
    except Exception as error:
        st.session_state.done = " ".join(str(error).split())


def fraction(event: Event) -> tuple[float, str]:
    """How much is done, and in words."""
    if event.kind == "wait":
        return 0.0, t("waiting")
    share = event.done_bytes / event.total_bytes if event.total_bytes else 0.0
    words = t("ingesting_many", done=event.done_files, total=event.total_files, source=plain(event.source or ""))
    return min(max(share, 0.0), 1.0), words


@st.fragment(run_every=2)
def listing(kb: str) -> None:
    """The documents, refreshed while the page is open, so that what the watched inbox does is seen."""
    state = shared()
    if (event := state.activity.get(kb)) is not None:
        st.progress(*fraction(event))
    documents = state.services.ingestor.documents(kb)
    if not documents:
        st.info(t("no_documents"), icon=":material/inbox:")
        return
    st.caption(t("count", n=len(documents), chunks=sum(document.chunks for document in documents)))
    wanted = ""
    if len(documents) > PER_PAGE:
        wanted = st.text_input(t("filter"), key=f"filter-{kb}", label_visibility="collapsed", placeholder=t("filter"))
    found = [document for document in documents if wanted.lower() in document.source.lower()]
    if not found:
        st.info(t("no_match"), icon=":material/search_off:")
        return
    pages = -(-len(found) // PER_PAGE)
    current = st.pagination(pages, key=f"pages-{kb}-{pages}") if pages > 1 else 1
    for document in found[(current - 1) * PER_PAGE : current * PER_PAGE]:
        row(kb, document)


def row(kb: str, document: DocumentStatus) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"row-{kb}-{document.source}"):
        left = st.container(gap=None)
        facts = [size(document.size)]
        if document.pages:
            facts.append(t("pages", n=document.pages))
        if document.chunks:
            facts.append(t("passages", n=document.chunks))
        badge = f":{COLOURS[document.status]}-badge[{t('status_' + document.status)}]"
        left.markdown(f"**{plain(document.source)}** {badge}")
        left.caption(plain(document.error) if document.error else " · ".join(facts))
        if st.button(
            "", icon=":material/delete:", help=t("delete"), key=f"delete-{kb}-{document.source}", type="tertiary"
        ):
            confirm(kb, document.source)


@st.dialog(" ")
def confirm(kb: str, source: str) -> None:
    """Asks before a file is deleted."""
    st.markdown(t("delete_ask", source=plain(source)))
    yes, no = st.columns(2)
    if yes.button(t("delete_yes"), type="primary", width="stretch"):
        try:
            shared().services.ingestor.delete_document(kb, source)
            st.session_state.done = t("deleted", source=source)
        except Exception as error:
            st.session_state.done = " ".join(str(error).split())
        st.rerun()
    if no.button(t("cancel"), width="stretch"):
        st.rerun()


def create_kb() -> None:
    """A knowledge base is a folder in the inbox."""
    with st.expander(t("new_kb"), icon=":material/create_new_folder:"), st.form("new_kb", border=False):
        name = st.text_input(t("new_kb_name"))
        if st.form_submit_button(t("create")):
            try:
                shared().services.ingestor.create_kb(name.strip())
            except Exception as error:
                st.error(plain(" ".join(str(error).split())))
            else:
                st.session_state.chosen_kb = name.strip()
                st.rerun()


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
