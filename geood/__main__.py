"""`python -m geood` and the `geood` command.

Before anything else it looks whether the other package called geood has taken this one's place.
"""

import sys
from typing import NoReturn

import geood
from geood._version import DISTRIBUTION, other_package


def main() -> NoReturn:
    """Run the command line and exit with its code; exit with 2 if the other package has overwritten this one."""
    other = other_package()
    if other is not None:
        replaced = "lazy_exports" not in vars(geood)  # by what it holds: versions may be equal
        said = (
            f"another package called geood ({other}) is installed in this environment and uses the same files"
            f"{', and has overwritten some of them' if replaced else ''}; keep them apart, or leave this one alone: "
            f"pip uninstall geood, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
        sys.stderr.write(f"geood: {said}\n")
        if replaced:
            sys.exit(2)
    from geood.cli import main as run

    run()


if __name__ == "__main__":
    main()
