"""Measures of generated text: perplexity, diversity, and what people think of it."""
