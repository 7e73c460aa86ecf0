"""Embedded documents and questions, and the script that makes them."""
