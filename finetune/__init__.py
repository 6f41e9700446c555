"""The trainer: adapts the LLaMA to a domain. Nothing is here yet; the package fixes the place in the import order."""
