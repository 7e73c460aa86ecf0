"""The plumbing that all projects share: configuration, logging, tracking, sources, results, seeds and devices.

Nothing in here knows a project or a model. Projects import from ``shared``, never the other way round.
"""
