"""What can go wrong with a model file, in one line for the user."""


class LlamaError(Exception):
    """A model, tokenizer, template or prompt that cannot be used; the message says why and what to do."""
