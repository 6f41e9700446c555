"""The chat: a question, an answer that streams, and under it the sources with the supporting quote marked."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import streamlit as st
from langchain_core.documents import Document

from app.answer import Answer
from app.main import shared
from app.prompt import Turn
from app.views.render import marked, plain, prose
from app.views.text import t

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
    question = st.chat_input(t("ask_here"), submit_mode="stop")
    if not conversation and not question:
        welcome(kb)
    for number, exchange in enumerate(conversation):
        show(exchange, f"{kb}-{number}")
    if question:
        exchange = Exchange(question)
        history = [Turn(e.question, e.answer.answer) for e in conversation if e.answer and not e.answer.refused]
        conversation.append(exchange)
        respond(exchange, kb, k, history[-REMEMBERED:], f"{kb}-{len(conversation) - 1}")


def welcome(kb: str) -> None:
    count = sum(document.status == "indexed" for document in shared().services.ingestor.documents(kb))
    with st.container(key="welcome"):
        st.title(t("welcome"))
        st.markdown(t("welcome_some" if count else "welcome_none", n=count, kb=plain(kb)))


def respond(exchange: Exchange, kb: str, k: int, history: list[Turn], key: str) -> None:
    """Answers under the eyes of the user. Leaving (the stop button, another page) ends the generation."""
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(plain(exchange.question))
    cancel = threading.Event()
    with st.chat_message("assistant", avatar=":material/pets:"):
        place = st.empty()
        state = shared()
        try:
            if not state.ready.is_set():
                with place, st.spinner(t("loading")):
                    state.ready.wait()
            with place, st.spinner(t("searching")):
                events = state.services.answerer.stream(exchange.question, kb, k, history, cancel)
                found = next(events)
            with place, st.spinner(t("reading", n=len(found) if isinstance(found, list) else 0)):
                event = next(events)
            while True:
                if isinstance(event, Answer):
                    exchange.answer = event
                    break
                if isinstance(event, str):
                    exchange.partial += event
                    place.markdown(prose(exchange.partial) + " ▌")
                event = next(events)
        except Exception as error:
            exchange.fault = " ".join(str(error).split())
        finally:
            cancel.set()
        place.empty()
        with place.container():
            outcome(exchange, key)


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
        st.info(plain(answer.answer), icon=":material/search_off:")
        others(answer.passages, key)
    else:
        st.markdown(with_numbers(answer))
        if answer.citations:
            st.caption(t("sources"))
        else:
            st.warning(t("unsupported"), icon=":material/help:")
        for c in answer.citations:
            with st.expander(label(c.n, c.source, c.page), icon=":material/description:", key=f"{key}-{c.n}"):
                st.html(marked(c.text, c.quote))
                st.caption(t("similarity", score=c.score))
        cited = {c.chunk_id for c in answer.citations}
        others([chunk for chunk in answer.passages if chunk.metadata["chunk_id"] not in cited], key)
        timing(answer)


def with_numbers(answer: Answer) -> str:
    """The answer in Markdown, each supported sentence with the numbers of its sources behind it."""
    return "".join(
        prose(text) + "".join(rf" :green-badge[{n}]" for n in numbers) for text, numbers in answer.pieces
    ) or prose(answer.answer)


def label(n: int, source: str, page_number: int | None) -> str:
    place = "" if page_number is None else ", " + t("page", page=page_number)
    return f"{n} · {plain(source)}{place}"


def others(chunks: list[Document], key: str) -> None:
    """Passages that the model read and the answer does not rest on."""
    if not chunks:
        return
    with st.expander(t("others", n=len(chunks)), icon=":material/menu_book:", key=f"{key}-others"):
        for chunk in chunks:
            data = chunk.metadata
            place = "" if data.get("page") is None else ", " + t("page", page=data["page"])
            st.markdown(f"**{plain(data['source'])}**{place} · {t('similarity', score=data['score'])}")
            st.html(marked(chunk.page_content, ""))


def timing(answer: Answer) -> None:
    figures = answer.timings
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
