"""Property tests have no deadline: how long an example takes says nothing about the engine."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
