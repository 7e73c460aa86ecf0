"""Questions answered from documents, every quote checked against its page."""
