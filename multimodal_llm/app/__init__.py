"""The project as a page."""
