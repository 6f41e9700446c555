"""The chat: a question, an answer that streams, and under it the sources with the supporting quote marked."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from langchain_core.documents import Document

from app.main import shared
from app.prompt import Turn
from app.result import Answer
from app.views import filters
from app.views.render import marked, plain, prose
from app.views.text import t
from ingest.filter import Filter

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

CURSOR = " ▌"
REMEMBERED = 6  # earlier exchanges that are given to the model at most


@dataclass
class Exchange:
    """A question with what came of it: an answer, a fault, or the beginning of an answer that was stopped."""

    question: str
    answer: Answer | None = None
    partial: str = ""
    fault: str | None = None


def page() -> None:
    kb, k = st.session_state.chosen_kb, st.session_state.chosen_k
    conversation: list[Exchange] = st.session_state.setdefault("conversations", {}).setdefault(kb, [])
    if conversation:
        with st.sidebar:
            if st.button(t("clear"), icon=":material/add_comment:", width="stretch"):
                conversation.clear()
                st.rerun()
    chosen, usable = filters.choose(kb)
    question = st.chat_input(t("ask_here"), submit_mode="disable", disabled=not usable)
    if not conversation and not question:
        welcome(kb)
    for number, exchange in enumerate(conversation):
        show(exchange, f"{kb}-{number}")
    if question:
        exchange = Exchange(question)
        # As it was understood: what "it" stood for then is what it stands for now.
        history = [
            Turn(e.answer.rewritten or e.question, e.answer.answer)
            for e in conversation
            if e.answer and not e.answer.refused
        ]
        conversation.append(exchange)
        respond(exchange, kb, k, history[-REMEMBERED:], f"{kb}-{len(conversation) - 1}", chosen)


def welcome(kb: str) -> None:
    count = sum(document.status == "indexed" for document in shared().services.ingestor.documents(kb))
    with st.container(key="welcome"):
        st.title(t("welcome"))
        st.markdown(t("welcome_some" if count else "welcome_none", n=count, kb=plain(kb)))


def respond(exchange: Exchange, kb: str, k: int, history: list[Turn], key: str, chosen: Filter | None) -> None:
    """Answers under the eyes of the user, with a button to stop.

    The answer is made in a thread of its own. This one shows what comes and, while nothing does, how long it has been:
    each time Streamlit can interrupt it, for the stop button or another page, and leaving cancels the generation.
    """
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(plain(exchange.question))
    events: queue.Queue[list[Document] | str | Answer | BaseException] = queue.Queue()
    cancel = threading.Event()
    arguments = (exchange.question, kb, k, history, cancel, chosen, st.session_state.chosen_adapter, events)
    threading.Thread(target=_work, args=arguments, daemon=True, name="answer").start()
    with st.bottom:
        stop = st.empty()
    stop.button(t("stop"), icon=":material/stop_circle:", key=f"stop-{key}")
    with st.chat_message("assistant", avatar=":material/pets:"):
        place = st.empty()
        try:
            _watch(exchange, events, place)
        finally:
            cancel.set()
        with place.container():
            outcome(exchange, key)
    stop.empty()


def _work(
    question: str,
    kb: str,
    k: int,
    history: list[Turn],
    cancel: threading.Event,
    chosen: Filter | None,
    adapter: str | None,
    events: queue.Queue[Any],
) -> None:
    state = shared()
    try:
        while not state.ready.wait(0.2):
            if cancel.is_set():
                return
        for event in state.services.answerer.stream(question, kb, k, history, cancel, chosen, adapter):
            events.put(event)
    except BaseException as error:  # whatever it is, the tab must not wait for ever
        events.put(error)


def _watch(exchange: Exchange, events: queue.Queue[Any], place: DeltaGenerator) -> None:
    """Shows the events until the answer is whole or has failed."""
    started = time.monotonic()
    doing = t("searching") if shared().ready.is_set() else t("loading")
    while True:
        if not exchange.partial:
            place.markdown(f":material/hourglass_top: {doing} :gray[{time.monotonic() - started:.0f} s]")
        try:
            event = events.get(timeout=0.25)
        except queue.Empty:
            if exchange.partial:
                place.markdown(prose(exchange.partial) + CURSOR)
            continue
        if isinstance(event, Answer):
            exchange.answer = event
            return
        if isinstance(event, BaseException):
            exchange.fault = " ".join(str(event).split())
            return
        if isinstance(event, str):
            exchange.partial += event
            place.markdown(prose(exchange.partial) + CURSOR)
        else:
            doing = t("reading", n=len(event))


def show(exchange: Exchange, key: str) -> None:
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(plain(exchange.question))
    with st.chat_message("assistant", avatar=":material/pets:"):
        outcome(exchange, key)


def outcome(exchange: Exchange, key: str) -> None:
    """A finished exchange: the answer with its sources, or why there is none."""
    answer = exchange.answer
    if exchange.fault is not None:
        st.error(plain(exchange.fault))
    elif answer is None:
        if exchange.partial:
            st.markdown(prose(exchange.partial))
        st.caption(t("stopped"))
    elif answer.refused:
        understood(answer)
        st.info(plain(answer.answer), icon=":material/search_off:")
        others(answer.passages, key, t("nearest", n=len(answer.passages)))
        confidence(answer)
    else:
        understood(answer)
        st.markdown(with_numbers(answer))
        if answer.citations and not all(sentence.support for sentence in answer.sentences):
            st.caption(t("some_unsupported"))
        if answer.citations:
            st.caption(t("sources"))
        else:
            st.warning(t("unsupported"), icon=":material/help:")
        for c in answer.citations:
            with st.expander(label(c.n, c.source, c.page), icon=":material/description:", key=f"{key}-{c.n}"):
                st.html(marked(c.text, c.quote))
                st.caption(t("similarity", score=c.score))
        cited = {c.chunk_id for c in answer.citations}
        rest = [chunk for chunk in answer.passages if chunk.metadata["chunk_id"] not in cited]
        others(rest, key, t("others", n=len(rest)))
        confidence(answer)
        timing(answer)


def understood(answer: Answer) -> None:
    """What a follow-up question was taken for."""
    if answer.rewritten is not None:
        st.caption(t("understood", question=plain(answer.rewritten)))


def confidence(answer: Answer) -> None:
    """How likely the documents hold the answer, where that is known."""
    if answer.confidence is not None:
        st.caption(t("confidence", percent=100 * answer.confidence))


def with_numbers(answer: Answer) -> str:
    """The answer in Markdown, each sentence with the numbers of its sources behind it, or a mark that it has none.

    Where nothing at all is supported, that is told once, under the answer.
    """
    mark = " :orange-badge[?]" if answer.citations else ""
    return "".join(
        prose(text) + ("".join(rf" :green-badge[{n}]" for n in numbers) or (mark if text.strip() else ""))
        for text, numbers in answer.pieces
    ) or prose(answer.answer)


def label(n: int, source: str, page_number: int | None) -> str:
    place = "" if page_number is None else ", " + t("page", page=page_number)
    return f"{n} · {plain(source)}{place}"


def others(chunks: list[Document], key: str, title: str) -> None:
    """Passages that the answer does not rest on: those that the model read as well, or that came nearest."""
    if not chunks:
        return
    with st.expander(title, icon=":material/menu_book:", key=f"{key}-others"):
        for chunk in chunks:
            data = chunk.metadata
            place = "" if data.get("page") is None else ", " + t("page", page=data["page"])
            st.markdown(f"**{plain(data['source'])}**{place} · {t('similarity', score=data['score'])}")
            st.html(marked(chunk.page_content, ""))


def timing(answer: Answer) -> None:
    figures = answer.timings
    if answer.adapter is not None:
        st.caption(t("answered_with", adapter=plain(answer.adapter)))
    st.caption(
        t(
            "timing",
            total=figures.total_s,
            retrieve=figures.retrieve_s,
            prefill=figures.prefill_s,
            decode=figures.decode_s,
            prompt=figures.prompt_tokens,
            answer=figures.answer_tokens,
        )
    )
