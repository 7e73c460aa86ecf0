"""Project 6: captions, visual questions, documents and search with images and text."""
