"""Known and held-out classes of a training on named data sets, resolved from names to ids of their taxonomy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from geood.catalog.lookup import data_set
from geood.errors import ConfigError


def shared_vocabulary(sets: Sequence[str], hold_out: Sequence[str]) -> tuple[dict[int, str], list[int]]:
    """Return the known classes (id to name) and the sorted ids held out of training, for data sets of one taxonomy.

    Raises:
        ConfigError: a data set or class is unknown, taxonomies differ, or a data set has no training split.
    """
    chosen = [data_set(name) for name in sets]
    taxonomy = chosen[0].taxonomy
    for other in chosen:
        if not other.trains:
            raise ConfigError(f"{other.name} has nothing to train on; it is for evaluation")
        if other.taxonomy.classes != taxonomy.classes:
            raise ConfigError(
                f"{chosen[0].name} has the classes of {taxonomy.name}, {other.name} those of {other.taxonomy.name}; "
                "sets that are mixed must share them"
            )
    names = {name: i for i, name in taxonomy.classes.items()}
    for name in hold_out:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(names)}"
            raise ConfigError(f"hold_out: {name} is not a class of {taxonomy.name}; {hint}")
    held = {names[name] for entry in chosen for name in entry.held_out} | {names[name] for name in hold_out}
    held |= taxonomy.anomalies
    return {i: name for i, name in taxonomy.classes.items() if i not in held}, sorted(held)
