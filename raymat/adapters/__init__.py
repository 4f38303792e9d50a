"""Nodules as datasets of other libraries, one file per library."""
