"""Classifiers, and how they are tuned."""
