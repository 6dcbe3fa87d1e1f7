from mmgpt.evaluation.report import TaskScore
from mmgpt.evaluation.table import print_scores


def test_only_columns_that_some_score_fills_are_shown(capsys):
    words = TaskScore("translate", 0.5, 20, "BLEU", interval=(0.4, 0.6))
    print_scores([words], [], "broken.txt")
    head, row = capsys.readouterr().out.split("\n")[1:3]
    assert head.split() == ["task", "score", "95", "%", "n"]
    assert row.split() == ["translate,", "BLEU", "50.0", "%", "40–60", "20"]


def test_media_shuffled_are_explained_where_they_are_told(capsys):
    seen = TaskScore("caption", 0.5, 20, control=0.125, goal=0.25, groups={"new": (0.75, 4)})
    print_scores([seen, TaskScore("answer", 0.25, 8)], [], "broken.txt")
    told = capsys.readouterr().out
    head, first, second = told.split("\n")[1:4]
    assert head.split() == ["task", "score", "95", "%", "shuffled", "goal", "n", "new"]
    assert first.split() == ["caption", "50.0", "%", "12.5", "%", "25.0", "%", "20", "75.0", "%"]
    assert second.split() == ["answer", "25.0", "%", "8"]
    assert "shuffled: the same questions with the media exchanged" in told


def test_where_nothing_is_scored_no_empty_table_is_shown(capsys):
    print_scores([], ["a.txt: too long"], "broken.txt")
    told = " ".join(capsys.readouterr().out.split())
    assert told == "1 samples or answers could not be used; the first: a.txt: too long (all in broken.txt)"
