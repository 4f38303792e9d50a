"""The commands of ``raymat`` beyond the build, by what they are for."""
