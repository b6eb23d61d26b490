"""Damaged and crafted inputs by the thousand: seeded mutations of every kind of file that geood reads.

Each kind of input has a room with three functions. `stock(folder)` makes valid files once; `case(rng, stock)` returns
damaged or crafted ones, the same for the same seed; `run(box, options, stock)` hands them to geood as a user would, and
returns the names of the outputs that should be there. One law holds for all kinds (`law`): either one of geood's own
errors comes out, or a right result, within bounded time and memory, and nothing else is left or written.

The suite tries some dozen cases of each kind (`test_fuzz`), `make fuzz` 20,000 (`python -m fuzz --help`).
"""

from fuzz import bundles, configs, labels, rasters, score_files, score_rasters, work_folders

# A kind of file that geood comes to read (verdict files, say) gets a room here, and a line in this table.
KINDS = {
    "bundles": bundles,
    "configs": configs,
    "labels": labels,
    "rasters": rasters,
    "score_files": score_files,
    "score_rasters": score_rasters,
    "work_folders": work_folders,
}
