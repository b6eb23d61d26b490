"""Config sections, the score table, and loading of config files."""
