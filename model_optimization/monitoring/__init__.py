"""Speed under load, and drift of live traffic."""
