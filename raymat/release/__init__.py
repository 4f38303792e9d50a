"""Releases: accepted nodules frozen under a version, readable without raymat, that show when they were changed."""
