"""The commands of ``raymat`` beyond the build, by what they are for.

What a command runs is imported where it runs: the parser, and with it ``raymat --help``, needs the standard library
alone.
"""
