"""The command line: Lightning's verbs and the short ones."""
