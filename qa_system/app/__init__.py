"""The system as a service and as a page."""
