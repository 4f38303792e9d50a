"""The commands of ``raymat`` other than the build, by subject.

A command imports what it needs when it runs: the parser, and with it ``raymat --help``, needs only the standard
library.
"""
