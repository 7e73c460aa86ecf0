"""Labelled texts, and how they become tokens."""
