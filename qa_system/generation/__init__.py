"""Answers from retrieved passages, and the check of what they cite."""
