"""The trainer: adapts the LLaMA to a domain. `run` is the whole of it; methods are in `adapters`, files in `data`."""
