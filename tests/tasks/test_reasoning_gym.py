"""reasoning-gym's generators as tasks: rows, splits, the generator's own score, and where an answer goes wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.feedback.reasoning_gym import ReasoningGymVerifier, read_answer, where_they_part
from errata.tasks import load, names, verifier
from errata.tasks.reasoning_gym import split_of

NAME = "reasoning-gym/spell_backward?min_word_len=3&max_word_len=5&size=40"


@pytest.fixture(scope="module")
def splits():
    pytest.importorskip("reasoning_gym")
    return {split: load(NAME, split=split) for split in ("train", "test")}


def test_the_family_is_listed_without_the_package():
    assert "reasoning-gym/NAME" in names()


def test_rows_follow_the_schema_and_splits_never_overlap(splits):
    questions = {}
    for split, rows in splits.items():
        assert rows.column_names == ["problem_id", "prompt", "answer", "reference", "task", "draw"]
        assert rows["problem_id"] == [f"{NAME}/{split}/{i}" for i in range(40)]
        questions[split] = {row["prompt"][0]["content"] for row in rows}
        assert {split_of(q) for q in questions[split]} == {split}
        assert len(questions[split]) == 40
    assert not questions["train"] & questions["test"]


def test_arguments_reach_the_generator(splits):
    for row in splits["train"]:
        word = row["prompt"][0]["content"].rpartition(" ")[2]
        assert 3 <= len(word) <= 5
        assert row["answer"] == row["reference"] == word[::-1]
    other = load(NAME + "&seed=1")
    assert other["answer"] != splits["train"]["answer"]
    assert load(NAME)["answer"] == splits["train"]["answer"]


def test_the_references_are_right(splits):
    rows = splits["test"]
    assert {v.score for v in verifier(NAME)(completions=list(rows["reference"]), **rows.to_dict())} == {1.0}


def test_a_small_world_gives_what_it_has(splits):
    """Sums of two digits from 1 to 9: 81 questions in all, shared out between the splits."""
    name = "reasoning-gym/chain_sum?max_terms=2&max_digits=1&min_digits=1&allow_negation=false"
    rows = {split: load(f"{name}&size=100", split=split) for split in ("train", "test")}
    assert 0 < len(rows["test"]) < len(rows["train"]) <= 100
    seen = [{r["prompt"][0]["content"] for r in part} for part in rows.values()]
    assert not seen[0] & seen[1]


def test_an_entry_with_several_right_answers_keeps_one_the_scorer_accepts(splits):
    rows = load("reasoning-gym/graph_color?size=3&min_num_vertices=4&max_num_vertices=4")
    verdicts = verifier("reasoning-gym/graph_color")(completions=list(rows["reference"]), **rows.to_dict())
    assert [v.score for v in verdicts] == [1.0, 1.0, 1.0]


def test_the_verdict_says_where_they_part(splits):
    row = splits["train"][0]
    right = row["answer"]
    columns = {"task": [NAME], "draw": [row["draw"]], "answer": [right]}
    wrong = right[:-1] + ("x" if right[-1] != "x" else "y")

    def judged(text, **settings):
        return verifier(NAME, **settings)(completions=[text], **columns)[0]

    assert judged(f"I think <answer> {right} </answer>").score == 1.0
    told = judged(wrong)
    assert (told.score, told.kind, told.leaks_answer) == (0.0, "difference", True)
    assert told.feedback == (
        f"Expected {right!r}, got {wrong!r}: character {len(right)} should be {right[-1]!r}, not {wrong[-1]!r}."
    )
    place = judged(wrong, feedback="place")
    assert (place.kind, place.leaks_answer) == ("place", False)
    assert place.feedback == (
        f"{wrong!r} is right up to character {len(right) - 1}; character {len(right)}, {wrong[-1]!r}, is wrong."
    )
    assert judged(wrong, feedback="bit").feedback == ""
    assert judged("").feedback == "There is no answer."
    assert judged("").leaks_answer is False


def test_part_marks_only_where_they_are_wanted(splits):
    """The scorer of spell_backward gives a share for a close answer."""
    row = splits["train"][0]
    columns = {"task": [NAME], "draw": [row["draw"]], "answer": [row["answer"]]}
    close = row["answer"][:-1]
    scores = [verifier(NAME, partial=p)(completions=[close], **columns)[0].score for p in (False, True)]
    assert scores[0] == 0.0
    assert 0.0 <= scores[1] < 1.0


@pytest.mark.parametrize(
    ("expected", "written", "tail"),
    [
        ("abc", "abd", "character 3 should be 'c', not 'd'"),
        ("abc", "ab", "character 3, 'c', and what follows it are missing"),
        ("abc", "abcd", "nothing more was to come after character 3, but 'd' follows"),
        ("a, b, c", "a,b,d", "item 3 should be 'c', not 'd'"),
        ("up left up", "up up", "word 2 should be 'left', not 'up'"),
        ("1 2\n3 4", "1 2\n3 5", "line 2 should be '3 4', not '3 5'"),
    ],
)
def test_where_two_answers_part(expected, written, tail):
    assert where_they_part(expected, written) == f"Expected {expected!r}, got {written!r}: {tail}."


@given(st.text("ab ,\n", min_size=1), st.text("ab ,\n"))
def test_the_place_never_tells_more_than_was_written(expected, written):
    """No answer breaks the comparison."""
    assert where_they_part(expected, written).startswith(f"Expected {expected!r}, got {written!r}: ")


def test_the_last_answer_block_counts():
    assert read_answer("<answer>1</answer> no, <ANSWER> 2 </ANSWER>") == "2"
    assert read_answer("<answer>cut off") == "cut off"
    assert read_answer(" plain ") == "plain"


def test_mistakes_are_named(splits):
    with pytest.raises(ValueError, match="no generator 'spell_backwards'; did you mean 'reasoning-gym/spell_backward'"):
        load("reasoning-gym/spell_backwards")
    with pytest.raises(ValueError, match=r"task: reasoning-gym/spell_backward\?lenght=3: .*lenght"):
        load("reasoning-gym/spell_backward?lenght=3")
    with pytest.raises(ValueError, match=r"'min_word_len' in .* is not of the form argument=value"):
        load("reasoning-gym/spell_backward?min_word_len")
    with pytest.raises(ValueError, match=r"size in .* must be a whole number of at least 1, got 0"):
        load("reasoning-gym/spell_backward?size=0")
    with pytest.raises(ValueError, match="has train and test, not 'dev'"):
        load(NAME, split="dev")
    with pytest.raises(ValueError, match="is made, not read"):
        load(NAME, path="x")
    with pytest.raises(ValueError, match="feedback: 'all' is none of difference, place, bit"):
        verifier(NAME, feedback="all")
    with pytest.raises(ValueError, match="reads the column 'draw'"):
        ReasoningGymVerifier(lambda *_: 0.0)(completions=["a"], task=[NAME])


def test_without_the_package_the_extra_is_named(monkeypatch):
    import sys

    from errata.tasks.reasoning_gym import _generator

    _generator.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"needs the package reasoning-gym .*pip install 'errata\[reasoning-gym\]'"):
        load("reasoning-gym/spell_backward")
