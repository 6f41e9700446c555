"""Measures retrieval, answers, refusals and perplexity. Everything is asked through the one answer path."""
