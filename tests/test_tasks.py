"""The tasks and the wordings of their requests."""

from collections import Counter

import pytest

from mmgpt.tasks import TASKS


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if len(task.prompts) > 1])
@pytest.mark.parametrize("turns", [1, 2, 3, 5, 10])
def test_wordings_tell_nothing_of_what_takes_turns(task, turns):
    """Of classes that do, each is asked for in every wording, about as often."""
    prompts = TASKS[task].prompts
    for first in range(turns):
        counts = Counter(TASKS[task].wording(number) for number in range(first, 400 * turns, turns))
        assert set(counts) == set(prompts)
        assert min(counts.values()) > 0.6 * 400 / len(prompts)


def test_a_number_has_one_wording_and_none_the_default():
    for task in TASKS.values():
        assert task.wording(None) == task.prompts[0]
        assert [task.wording(number) for number in range(9)] == [task.wording(number) for number in range(9)]


def test_as_many_numbers_as_there_are_wordings_have_each_another():
    for task in TASKS.values():
        count = len(task.prompts)
        assert {task.wording(number) for number in range(5 * count, 6 * count)} == set(task.prompts)
