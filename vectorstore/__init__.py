"""Chroma and what stands around it: the store and the retriever."""
