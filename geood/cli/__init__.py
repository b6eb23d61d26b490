"""The command line: verbs that parse, call one function, and print what was written."""
