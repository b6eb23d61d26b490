"""The config: its sections, and how files become one."""
