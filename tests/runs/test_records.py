from dataclasses import replace

from charlm.runs.records import EvalRecord, NoteRecord, TrainRecord


def test_a_line_has_the_kind_first_and_nothing_that_is_unknown():
    record = TrainRecord(step=3, loss_nats=2.5, chars_per_second=10.0, seconds=1.5)

    assert list(record.as_json().items()) == [
        ("kind", "train"), ("step", 3), ("loss_nats", 2.5), ("chars_per_second", 10.0),
        ("seconds", 1.5),
    ]  # fmt: skip


def test_an_evaluation_says_what_was_scored_and_how():
    line = EvalRecord(step=0, chars=9, loss_nats=3.0, best=False, seconds=0.1).as_json()

    assert (line["split"], line["protocol"], line["best"]) == ("val", "windows", False)


def test_a_record_of_an_expert_carries_its_name():
    record = replace(NoteRecord(text="hello"), expert="small")

    assert record.as_json() == {"kind": "note", "expert": "small", "text": "hello"}
