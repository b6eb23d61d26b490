"""Version and distribution name, alone in their room so that nothing heavy is imported to read them."""

__version__ = "0.1.0"
DISTRIBUTION = "geood-toolkit"
