"""Laws of the feed: the batches of a plain loader in its order, read ahead by one thread, none beside another."""

import threading

import pytest
import torch
from torch.utils.data import Dataset

from geood.errors import DataError
from geood.training.feed import AHEAD, EpochSlice, Feed, ReadAhead


class Numbers(Dataset):
    """The numbers below 100, with the threads that read them; reading `bad` fails."""

    def __init__(self, bad=None):
        self.bad, self.read, self.names, self.computing = bad, [], set(), set()

    def __getitem__(self, i):
        if i == self.bad:
            raise DataError(f"number {i} cannot be read")
        self.read.append(i)
        self.names.add(threading.current_thread().name)
        self.computing.add(torch.get_num_threads())
        return {"number": i}


def feed(numbers, *, epoch=0):
    return Feed(numbers, batch_size=2, sampler=EpochSlice(10, epoch))


def asked(batches):
    return [batch["number"].tolist() for batch in batches]


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_gives_its_positions_in_order_and_reads_none_beyond(epoch):
    numbers = Numbers()
    loader = feed(numbers, epoch=epoch)
    first = epoch * 10
    wanted = [[i, i + 1] for i in range(first, first + 10, 2)]
    assert asked(loader) == wanted
    assert numbers.read == [i for pair in wanted for i in pair]
    loader.sampler.set_epoch(epoch + 1)
    assert asked(loader) == [[i + 10 for i in pair] for pair in wanted]


def test_a_thread_of_its_own_reads_and_computes_alone():
    numbers, threads = Numbers(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        asked(feed(numbers))
        assert numbers.computing == {1}
        assert torch.get_num_threads() == 3
        assert threading.current_thread().name not in numbers.names
        assert len(numbers.names) == 1
    finally:
        torch.set_num_threads(threads)


def test_it_reads_ahead_and_no_further():
    given = []
    reached = threading.Event()

    def batches():
        for i in range(100):
            given.append(i)
            if len(given) == AHEAD + 1:
                reached.set()
            yield {"number": torch.tensor(i)}

    ahead = ReadAhead(batches())
    assert int(next(ahead)["number"]) == 0
    assert reached.wait(60)
    ahead.close()
    assert given == list(range(AHEAD + 1))
    assert list(ahead) == []


def test_a_failure_comes_in_its_turn_and_ends_the_reading():
    numbers = Numbers(bad=4)
    batches = iter(feed(numbers))
    assert [next(batches)["number"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="number 4 cannot"):
        next(batches)
    assert list(batches) == []


def test_what_is_closed_reads_no_further():
    numbers = Numbers()
    loader = feed(numbers)
    loader.close()  # nothing is read yet
    next(iter(loader))
    loader.close()
    read = list(numbers.read)
    assert len(read) <= 2 * (1 + AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]
    assert numbers.read == read


def test_a_new_iterator_ends_the_one_before():
    numbers = Numbers()
    loader = feed(numbers)
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert list(first) == []
    assert len(asked(second)) == 5
