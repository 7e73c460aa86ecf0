"""Embedded defaults of project 1: a corpus that every Python brings, and the script that draws the README's picture."""
