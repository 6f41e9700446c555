"""The model: our own LLaMA, its cache, checkpoint reader, tokenizer, sampling and engine."""
