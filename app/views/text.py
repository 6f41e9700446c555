"""The words of the web UI, in English and Chinese; the browser's language chooses."""

from __future__ import annotations

import streamlit as st

WORDS: dict[str, tuple[str, str]] = {
    "ask_page": ("Ask", "提问"),
    "documents_page": ("Documents", "文档"),
    "kb": ("Knowledge base", "知识库"),
    "k": ("Passages to read", "参考段落数"),
    "k_help": (
        "How many passages are looked up for a question. More can help, and takes longer.",
        "为每个问题查找的段落数。多一些可能有帮助，但更慢。",
    ),
    "adapter": ("Adapter", "适配器"),
    "answered_with": ("Answered with the adapter {adapter}", "由适配器 {adapter} 回答"),
    "no_adapter": ("None (the bare model)", "无（原模型）"),
    "limit": ("Limit to some documents", "限定文档范围"),
    "limit_source": ("Name or path", "名称或路径"),
    "any": ("any", "不限"),
    "limit_type": ("Type", "类型"),
    "limit_language": ("Language", "语言"),
    "limit_after": ("Modified on or after", "修改日期不早于"),
    "limit_before": ("Modified before", "修改日期早于"),
    "limited": ("Only documents that match: {filter}", "仅限符合条件的文档：{filter}"),
    "ask_here": ("Ask about your documents", "就您的文档提问"),
    "welcome": ("What would you like to know?", "您想了解什么？"),
    "welcome_some": (
        "Answers come from the documents in **{kb}** ({n}), with the passage that supports them. "
        "Nothing leaves this machine.",
        "答案来自 **{kb}** 中的 {n} 份文档，并附上依据的段落。任何内容都不会离开这台电脑。",
    ),
    "welcome_none": (
        "There is nothing in **{kb}** yet. Drop files into the inbox, or add them on the Documents page.",
        "**{kb}** 中还没有文档。请把文件放入收件箱，或在“文档”页面添加。",
    ),
    "searching": ("Searching the documents…", "正在查找文档…"),
    "loading": ("Loading the model…", "正在加载模型…"),
    "reading": ("Reading what was found ({n})…", "正在阅读找到的段落（{n}）…"),
    "sources": ("Sources", "来源"),
    "unsupported": (
        "No passage supports this answer word for word. Check it before you rely on it.",
        "没有段落能逐字支持这个答案，请核实后再使用。",
    ),
    "some_unsupported": (
        "A question mark stands behind what no passage supports.",
        "问号表示没有段落支持该句。",
    ),
    "understood": ("Understood as: {question}", "理解为：{question}"),
    "confidence": (
        "How likely the documents answer this: {percent:.0f}%",
        "文档能回答此问题的可能性：{percent:.0f}%",
    ),
    "nearest": ("The nearest passages ({n})", "最接近的段落（{n}）"),
    "others": ("Other passages that were read ({n})", "其他参考段落（{n}）"),
    "stop": ("Stop", "停止"),
    "stopped": ("Stopped.", "已停止。"),
    "page": ("page {page}", "第 {page} 页"),
    "similarity": ("similarity {score:.2f}", "相似度 {score:.2f}"),
    "timing": (
        "{total:.1f} s: search {retrieve:.1f}, read {prefill:.1f}, write {decode:.1f} · {prompt} + {answer} tokens",
        "{total:.1f} 秒：查找 {retrieve:.1f}，阅读 {prefill:.1f}，书写 {decode:.1f} · {prompt} + {answer} 个词元",
    ),
    "clear": ("New conversation", "新对话"),
    "upload": ("Add documents", "添加文档"),
    "upload_help": ("Kept in the inbox of the knowledge base “{kb}”.", "保存在知识库“{kb}”的收件箱中。"),
    "ingesting_many": ("Indexing {done} of {total}: {source}", "正在索引 {done}/{total}：{source}"),
    "waiting": ("Waiting for another run to finish…", "正在等待另一次索引结束…"),
    "indexed": ("Indexed {n} new, {changed} changed.", "已索引：新增 {n}，更新 {changed}。"),
    "failed": ("{source}: {error}", "{source}：{error}"),
    "filter": ("Find a document", "查找文档"),
    "no_documents": ("No documents yet.", "还没有文档。"),
    "no_match": ("No document has this in its name.", "没有文件名包含此内容的文档。"),
    "count": ("Documents: {n} · passages: {chunks}", "文档：{n} · 段落：{chunks}"),
    "delete": ("Delete", "删除"),
    "delete_ask": (
        "Delete **{source}**? The file is removed from the inbox, and its passages from the index.",
        "要删除 **{source}** 吗？文件将从收件箱中移除，其段落将从索引中删除。",
    ),
    "delete_yes": ("Delete it", "确认删除"),
    "cancel": ("Cancel", "取消"),
    "deleted": ("Deleted {source}.", "已删除 {source}。"),
    "new_kb": ("New knowledge base", "新建知识库"),
    "new_kb_name": ("Name", "名称"),
    "create": ("Create", "创建"),
    "status_indexed": ("indexed", "已索引"),
    "status_failed": ("failed", "失败"),
    "status_new": ("waiting", "等待中"),
    "status_changed": ("changed", "已更改"),
    "passages": ("passages: {n}", "段落：{n}"),
    "pages": ("pages: {n}", "页数：{n}"),
    "inbox": ("Inbox folder: `{path}`", "收件箱文件夹：`{path}`"),
    "watched": (
        "It is watched: files you put there are indexed by themselves.",
        "文件夹受到监视：放入的文件会自动索引。",
    ),
    "unwatched": ("It is not watched now (started with --no-watch).", "目前没有监视（以 --no-watch 启动）。"),
    "refresh": ("Index now", "立即索引"),
    "password": ("Password", "密码"),
    "enter": ("Enter", "进入"),
    "wrong_password": ("That is not the password.", "密码不正确。"),
}


def t(name: str, **values: object) -> str:
    """The word in the browser's language."""
    chinese = (st.context.locale or "").lower().startswith("zh")
    return WORDS[name][chinese].format(**values)
