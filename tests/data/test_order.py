from mmgpt.data.order import Order


def taken(order: Order, epoch: int) -> list[int]:
    return [order.index(epoch, place) for place in range(len(order))]


def test_each_epoch_has_a_permutation_of_its_own_by_the_seed():
    order = Order(range(50), shuffle=True, seed=1)
    first, second = taken(order, 0), taken(order, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert taken(order, 0) == first  # whatever was asked for in between
    assert taken(Order(range(50), shuffle=True, seed=1), 1) == second
    assert taken(Order(range(50), shuffle=True, seed=2), 0) != first


def test_without_shuffling_samples_come_as_they_lie():
    assert taken(Order(range(5), shuffle=False, seed=1), 3) == list(range(5))
