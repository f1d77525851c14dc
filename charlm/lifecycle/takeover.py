"""Taking weights from other runs: the experts of a mixture, and initial weights."""

from pathlib import Path

from charlm.config import Config, ModelConfig
from charlm.config.schema import leaves
from charlm.errors import CheckpointError
from charlm.runs import RunFolder, find_run
from charlm.runs.load import alphabet_note, load_from_run
from charlm.storage import read_manifest
from charlm.text import Corpus, Tokenizer


def resolve_experts(config: Config, tokenizer: Tokenizer) -> Config:
    """Fill in the models of those experts of a mixture that come from runs.

    Raises:
        CheckpointError: A run is missing or damaged, is itself a mixture, has a model different
            from this run's, or cannot be taken over to this alphabet.
    """
    experts = dict(config.model.members())
    for name, expert in experts.items():
        if expert.run:
            try:
                model = _model_of_run(expert.run, tokenizer)
            except CheckpointError as error:
                raise error.within(f"model.experts.{name}.run") from None
            if expert.model not in (None, model):
                where, what = f"model.experts.{name}.model", f"{expert.run} has another"
                raise CheckpointError(where, what, "leave model out, it comes from the run")
            experts[name] = expert.model_copy(update={"model": model})
    return config.model_copy(update={"model": config.model.with_members(experts)})


def _model_of_run(name: str, tokenizer: Tokenizer) -> ModelConfig:
    """Return the model of a run that can be an expert, its checkpoint verified."""
    model = find_run(Path(name)).config.model
    if not model.can_be_expert:
        raise CheckpointError(name, "is a mixture itself", "name its experts")
    load_from_run(None, name, "best", model, tokenizer)
    return model


def check_first_weights(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a run whose weights cannot initialise this run.

    Raises:
        CheckpointError: It is missing or damaged, has another model, or cannot be taken over to
            this alphabet.
    """
    for expert, one in config.training_runs().items():
        if name := one.train.init_from:
            try:
                _refuse_other_model(name, one.model)
                load_from_run(None, name, "best", one.model, tokenizer)
            except CheckpointError as error:
                key = f"model.experts.{expert}.train.init_from" if expert else "train.init_from"
                raise error.within(key) from None


def _refuse_other_model(name: str, model: ModelConfig) -> None:
    """Refuse a run of another model, with the first key that differs."""
    ours = leaves(model.model_dump())
    theirs = leaves(find_run(Path(name)).config.model.model_dump())
    for key, value in sorted(theirs.items(), key=lambda item: item[0] != "type"):  # type first
        if ours.get(key) != value:
            what = f"its model.{key} is {value!r}, here {ours.get(key)!r}"
            raise CheckpointError(name, what, "make them equal")


def alphabet_notes(config: Config, tokenizer: Tokenizer) -> list[str]:
    """Note which characters the runs know that weights are taken from, if not all and no others."""
    members, runs = config.model.members(), config.training_runs()
    names = {f"model.experts.{name}.run": expert.run for name, expert in members.items()}
    for expert, one in runs.items():
        key = f"model.experts.{expert}.train.init_from" if expert else "train.init_from"
        names[key] = one.train.init_from
    notes = {key: alphabet_note(name, tokenizer) for key, name in names.items() if name}
    return [f"{key}: {note}" for key, note in notes.items() if note]


# Facts of a text that say which records come first.
ORDER = ("records", "shuffled", "repeats")


def seen_notes(config: Config, corpus: Corpus) -> list[str]:
    """Note experts from runs that were trained on text which this run scores or fits weights on.

    This is known only for runs of the same text: their copy of the text records the split.
    """
    notes = []
    train = corpus.splits["train"]
    cut = len(train) - config.model.held_back(len(train))
    for name, expert in config.model.members().items():
        try:
            theirs = read_manifest(RunFolder(Path(expert.run)).text_path) if expert.run else {}
            end = theirs["splits"]["train"][1]
        except (CheckpointError, KeyError, TypeError, IndexError):
            continue  # not from a run, or one that has lost its text
        if theirs.get("source_sha256") != corpus.facts["source_sha256"]:
            continue
        who = f"model.experts.{name}.run: {expert.run} has read"
        if any(theirs.get(key) != corpus.facts.get(key) for key in ORDER):
            what = "this text in another order, so the validation loss will be too low"
            mend = "train it with the same data.records, shuffle, shuffle_seed and unique"
        elif end <= cut:
            continue
        elif end > len(train):
            what = "part of this validation text, so the validation loss will be too low"
            mend = "train it with the same data.val_fraction and data.test_fraction"
        else:
            what = "the end of the training text, on which weights are fitted: its own is too large"
            mend = "given as a model instead, it is trained without that"
        notes.append(f"{who} {what}; {mend}")
    return notes
