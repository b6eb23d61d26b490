"""Work done by several threads at once."""

import threading


def in_threads(work, count=4):
    """Call `work` in so many threads, and wait for all."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
