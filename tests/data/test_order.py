from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.data.order import Order, StreamOrder


def taken(order: Order, epoch: int) -> list[int]:
    return [order.index(epoch, place) for place in range(order.length)]


def test_each_epoch_has_a_permutation_of_its_own_by_the_seed():
    order = Order(range(50), shuffle=True, seed=1)
    first, second = taken(order, 0), taken(order, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert taken(order, 0) == first  # whatever was asked for in between
    assert taken(Order(range(50), shuffle=True, seed=1), 1) == second
    assert taken(Order(range(50), shuffle=True, seed=2), 0) != first


@given(st.integers(0, 40), st.integers(1, 4), st.booleans(), st.data())
@settings(derandomize=True, deadline=None)
def test_processes_divide_an_epoch_and_each_goes_on_from_any_place(count, processes, stream, data):
    kind = StreamOrder if stream else Order
    order = kind(range(count), shuffle=True, seed=2)  # type: ignore[arg-type]
    own = [list(order.keys(1, (), 0, rank, processes)) for rank in range(processes)]
    assert sorted(key.number for keys in own for key in keys) == list(range(count))
    if stream:
        assert sorted(key.sample for keys in own for key in keys) == list(range(count))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    rank = data.draw(st.integers(0, processes - 1))
    start = data.draw(st.integers(0, len(own[rank])))
    again = data.draw(st.sets(st.integers(0, start - 1))) if start else set()
    rest = list(order.keys(1, again, start, rank, processes))
    assert rest == [own[rank][place] for place in sorted(again)] + own[rank][start:]


def test_without_shuffling_samples_come_as_they_lie():
    assert taken(Order(range(5), shuffle=False, seed=1), 3) == list(range(5))
