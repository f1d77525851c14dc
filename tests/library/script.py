"""A user's script that uses all of the library; mypy reads it in its strict mode."""

from pathlib import Path

import charlm
from charlm.errors import CharlmError
from charlm.runs.records import EvalRecord, Record

losses: list[float] = []


def watch(record: Record) -> None:
    if isinstance(record, EvalRecord):
        losses.append(record.loss_nats)


small = {"block_size": 16, "n_layer": 1, "n_embd": 16}
few = {"max_steps": 4, "eval_every": 2, "batch_size": 2}
run: charlm.Run = charlm.train("gpt", Path("my.txt"), on_record=watch, model=small, train=few)
model: charlm.Model = charlm.load(run)
text: str = model.generate("To be", seed=1, temperature=0.7)
texts: list[str] = model.generate("To be", 3)
pieces: list[str] = list(model.stream("To be", stop="."))
score: charlm.Score = model.score("To be")
scores: list[charlm.Score] = model.score(["To be", "or not"])
bits: float = score.total_bits + sum(one.bits_per_char for one in scores) + float(score.nats.sum())
likely: dict[str, float] = model.next("To b")
best: str = max(likely, key=lambda one: likely[one])
shape: tuple[int, ...] = tuple(model.logits(model.tokenizer.encode("To be")).shape)
heads: int = model.attention("To be").shape[1]
weights: int = sum(tensor.numel() for tensor in model.module.state_dict().values())
copied: Path = model.save("copy").path
page: Path = run.report()
steps: list[int] = [one.step for one in charlm.open(copied).checkpoints]
ranked: list[float] = [one.score.loss_nats for one in charlm.compare([run])]
known: float = charlm.baselines("to be or not to be " * 99).loss_nats("bigram")
try:
    charlm.open("nothing")
except CharlmError as error:
    print(error.lines()[0], run.config.train.max_steps, run.evaluate().loss_nats)
