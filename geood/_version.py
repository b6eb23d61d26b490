"""Version and distribution name, and a look for the other package called geood; nothing heavy is imported for them.

This package is distributed as `geood-toolkit` and imported as `geood`. A package distributed as `geood`, which finds
out-of-distribution texts by the hidden states of language models, is imported by the same name: installed in one
environment, the later of the two overwrites files of the earlier.
"""

__version__ = "0.1.0"
DISTRIBUTION = "geood-toolkit"


def other_package() -> str | None:
    """Return the version of the other package called geood if it is installed in this environment, else None."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        found = metadata("geood")
    except PackageNotFoundError:
        return None
    own = "aerial and satellite scenes" in (found["Summary"] or "")  # installed from here under the name of before
    return None if own else str(found["Version"])
