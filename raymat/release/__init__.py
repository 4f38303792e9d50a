"""Releases: accepted nodules frozen under a version, readable without raymat, that tell when they were changed."""
