"""Questions about images: where they come from, how answers are scored, and models that answer."""
