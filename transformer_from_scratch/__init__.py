"""Project 1: attention, positions and blocks by hand, and a character language model trained with them."""
