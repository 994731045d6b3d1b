"""The command line: Lightning's commands and the short ones."""
