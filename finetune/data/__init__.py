"""Training data: files of many forms to token ids and masks of what is learned."""
