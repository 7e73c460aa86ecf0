"""Leaving weights out: single ones, and whole heads, neurons and vocabulary."""
