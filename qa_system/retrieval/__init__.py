"""How passages are found: by meaning, by words, and by both."""
