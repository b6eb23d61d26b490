"""A Dask cluster: workers on this machine here, on any number of machines in earnest; the map is the same to the byte.

A scheduler of your own (`dask scheduler`, Kubernetes, Slurm through dask-jobqueue) has an address that goes to
`scheduler`. Its workers need geood, and see scenes and model under the same names.
"""

import sys

from distributed import LocalCluster

import geood

if __name__ == "__main__":  # worker processes import this file
    scene, model, out = sys.argv[1:]
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        [made] = geood.predict([scene], out, bundle=model, scheduler=cluster.scheduler_address)
    print(f"{made.scores}: {made.valid_pixels:,} pixels")
