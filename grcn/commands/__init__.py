"""The commands: one thin file each, which reads the command line and makes one call."""
