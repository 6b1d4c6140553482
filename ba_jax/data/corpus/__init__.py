"""The embedded corpus and its facts."""
