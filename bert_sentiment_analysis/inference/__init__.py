"""Prediction and explanation."""
