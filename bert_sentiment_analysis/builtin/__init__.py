"""Embedded data and adapters, and the scripts that make them."""
