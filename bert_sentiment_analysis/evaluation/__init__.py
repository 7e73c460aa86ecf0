"""Figures and plots."""
