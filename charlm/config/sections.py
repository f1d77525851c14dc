"""Every key of a configuration outside `model`: its meaning, its default, its range."""

import codecs
import contextlib
import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from charlm.config.values import (
    Count,
    Integer,
    Number,
    Place,
    Section,
    Share,
    Size,
    Text,
    integer,
    shown,
    text,
    wrong,
)
from charlm.errors import Problem

MAX_SYMBOLS = 2**21  # Unicode ends at 0x10FFFF, just below 2^21
MINUTES = 1_000_000  # the longest budget: two years
SEEDS = 2**63  # seeds are below it, so that each fits into a signed 64-bit integer
COMMON_ENCODINGS = "utf-8, utf-16 and latin-1 are common"
NO_TEXTS = {"idna", "punycode"}  # encodings of host names, which cannot decode a text in chunks


def _column(value: object) -> str | int | None:
    """Return the name of a column, or its number; refuse anything else."""
    if value is None or (isinstance(value, str) and value and not value.isdecimal()):
        return None if value is None else text(value)
    with contextlib.suppress(ValueError):
        if (number := integer(value)) > 0:
            return number
    raise wrong(f"expected a name or a number from 1, got {shown(value)}")


class DataConfig(Section):
    """The text: its source, its parts, and its unit."""

    source: Place = "python-docs"
    """A named text (`charlm data list`), a file, a folder, a glob such as `texts/*.txt`, or `-`."""
    joiner: Text = "\n"
    """Put between the files of a folder or glob where the text before it does not end with it."""
    val_fraction: Share = 0.1
    """Share of the text held out for validation; it follows the training part."""
    test_fraction: Share = 0.0
    """Share of the text held out for a final test, at the very end."""
    unit: Literal["chars", "bytes"] = "chars"
    """`chars`: symbols are Unicode characters. `bytes`: symbols are bytes, and any file will do."""
    encoding: Text = "utf-8"
    """Encoding of the text when `unit` is `chars`."""
    unpack: Literal["auto"] | bool = "auto"
    """Unpack gzip, bzip2, xz and zstd files while they are read. `auto`: if `unit` is `chars`; bytes are
    read as they are in the file."""
    newlines: Literal["keep", "lf", "none"] = "keep"
    """`lf`: `\\r\\n` and `\\r` become `\\n`. `none`: leave out all line ends, as in FASTA files."""
    skip_lines: Count = 0
    """Leave out the first lines of each file, such as a header."""
    column: Annotated[str | int | None, BeforeValidator(_column)] = None
    """Take each value of this column, with its line ends, as a record; needs `records: lines`. The files are
    tables: .csv, .tsv, .jsonl or .parquet, also compressed (.csv.gz). A name; or a number from 1, and there
    are no names."""
    missing: Literal["error", "skip"] = "error"
    """`skip`: leave out rows of a JSON Lines file that do not have the column. `error`: refuse them."""
    records: Literal["none", "lines", "files", "paragraphs"] = "none"
    """What one of many short texts is. A model then learns where each begins and ends, and never
    looks beyond. `paragraphs` are separated by empty lines. `none`: this is one text."""
    shuffle: bool = True
    """Put records into an order by `shuffle_seed` before they are split into parts; equal ones then fall into
    one part. False: split them in the order of the text."""
    unique: bool = False
    """Keep one of equal records."""
    shuffle_seed: Annotated[int, Field(ge=0, lt=SEEDS), Integer] = 0
    """Seed of the order of records. Runs with another `run.seed` still share their parts."""
    min_count: Annotated[int, Field(ge=1), Integer] = 1
    """Characters that occur fewer times in the whole text share one symbol of the alphabet, and so do
    those that it does not have. Each also costs a uniform code over all others of Unicode, so losses
    stay comparable. The symbol is never drawn in samples."""
    max_vocab: Annotated[int, Field(ge=1, le=MAX_SYMBOLS), Integer] = 65_536
    """Refuse a text with more distinct characters than this."""

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        if self.val_fraction + self.test_fraction >= 1:
            both = f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction}"
            yield Problem(
                "", f"{both} leave nothing to train on", "together they must stay below 1"
            )
        if self.column is not None and self.records == "none":
            yield Problem(
                "column", "needs data.records=lines, because each value becomes one record"
            )
        if self.column is not None and self.records == "files":
            what = "each file would be one record, but data.column makes one of each value"
            yield Problem("records", what, "use data.records=lines")
        if self.missing == "skip" and self.column is None:
            yield Problem("missing", "only rows of a table can lack a column", "add data.column")
        no_ends = self.newlines == "none" and self.column is None
        if no_ends and self.records in ("lines", "paragraphs"):
            what = f"without line ends there are no {self.records}"
            yield Problem("newlines", what, "use data.newlines=lf or data.records=files")
        if self.unique and not self.shuffle:
            mend = "set data.shuffle=true, or remove repeats first"
            yield Problem("unique", "repeats are found by shuffling", mend)
        if self.records != "none" and self.unit == "bytes":
            yield Problem(
                "records", f"{self.records} are made of characters", "use data.unit=chars"
            )
        if self.min_count > 1 and self.unit == "bytes":
            yield Problem("min_count", "bytes have no rare symbols", "use 1, or data.unit=chars")
        if re.search(r"\\[nrt]", self.joiner):
            what = f"{shown(self.joiner)} is a backslash and a letter, not a line break"
            mend = "in a file, put it in double quotes; in bash, write $'data.joiner=\\n'"
            yield Problem("joiner", what, mend)
        with contextlib.suppress(LookupError, ValueError):
            "".encode(self.encoding)
            if codecs.lookup(self.encoding).name not in NO_TEXTS:
                return
        yield Problem("encoding", f"unknown {self.encoding!r}", COMMON_ENCODINGS)


class TrainConfig(Section):
    """How the weights are trained."""

    max_steps: Count = 2000
    """Number of optimizer updates."""
    minutes: Annotated[float, Field(gt=0, le=MINUTES), Number] | None = None
    """Wall-time budget. It replaces `max_steps`; the schedule ends with the budget."""
    plan: bool = False
    """With `minutes`, for `style: modern` and `muon`: choose size, batch, learning rate, weight decay
    and dropout for the budget, the text and this machine. Keys given as KEY=VALUE are kept."""
    batch_size: Size = 32
    """Windows in one update, over all micro-batches."""
    micro_batch_size: Size | None = None
    """Windows in one forward pass; gradients accumulate over them. Null: the whole batch."""
    parallel: Literal["none", "ddp", "fsdp2"] = "none"
    """`ddp`: the processes that torchrun starts train one model, each on a part of a batch's
    micro-batches (see docs/scale.md). Their number is not a part of the configuration. `fsdp2`: as
    `ddp`, but each process holds only its part of the weights. For GPTs."""
    sharded_saves: bool = False
    """With `fsdp2`: each process writes its own part of a checkpoint, and none collects all. Commands
    read such a checkpoint, but `charlm compress` and mixtures need an ordinary one: `charlm runs merge`
    makes it."""
    exact: Literal["auto"] | bool = "auto"
    """Add the gradients of micro-batches in the order of one tree, so that the bits do not depend on the
    number of processes. `auto`: on a CPU. `false`: in whichever order takes the least time and memory."""
    init_from: str | None = None
    """Start from the best weights of this run, which has the same model. Characters that it does not
    know begin with random ones. Null: all do."""
    gradients: Literal["autograd", "by_hand"] = "autograd"
    """`autograd`: PyTorch computes them. `by_hand`: `charlm.backprop` does (see docs/backprop.md)."""
    carry_state: bool = False
    """Of a recurrent model: each window follows the one before and begins with its last state, without
    a gradient from there. False: windows are drawn anywhere, and each begins anew."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the hidden matrices, AdamW for everything else."""
    learning_rate: Annotated[float, Field(gt=0), Number] = 1e-3
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so it serves both."""
    min_lr: Annotated[float, Field(ge=0), Number] = 1e-4
    """Learning rate at the end of the schedule."""
    warmup_steps: Count = 100
    """Updates over which the learning rate rises linearly from near zero."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: `cosine` falls to `min_lr`; `wsd` stays, then falls linearly over the last
    fifth; `constant` stays."""
    beta1: Share = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Share = 0.99
    """AdamW's decay of the mean squared gradient."""
    weight_decay: Annotated[float, Field(ge=0), Number] = 0.1
    """Decoupled weight decay of matrices and embeddings; vectors are not decayed."""
    grad_clip: Annotated[float, Field(ge=0), Number] = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    eval_every: Size = 250
    """Updates between evaluations on the validation part; also before the first and after the last."""
    sample_every: Count = 0
    """Updates between samples written to `samples/`, all with the same prompt and seed; 0: none."""
    sample_chars: Count = 200
    """Characters in each of these samples."""
    save_every: Count = 0
    """Updates between checkpoints; 0 saves each new best and the last only."""
    patience: Size | None = None
    """Stop after this many evaluations without a new best."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """When a loss or gradient is NaN or infinite: `stop`; `skip` the step, at most three in a row; or
    `rollback` to the best checkpoint and go on at half the learning rate, at most three times."""

    DECAY_SHARE: ClassVar[float] = 0.2  # of a `wsd` schedule; the literature uses 0.1 to 0.3

    @property
    def in_order(self) -> bool:
        """Whether several processes add up gradients as one does, so that they leave the same bits."""
        return self.exact is not False and self.parallel != "fsdp2"

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        if self.init_from and self.plan and self.minutes is not None:
            yield Problem("", "plan chooses a size and init_from has one", "set plan=false")
        if self.warmup_steps > self.max_steps and self.minutes is None:
            what = f"warmup_steps {self.warmup_steps} is more than max_steps {self.max_steps}"
            yield Problem("", what, "lower it or train longer")
        if self.sharded_saves and self.parallel != "fsdp2":
            what = f"sharded_saves needs parallel: fsdp2, and it is {self.parallel}"
            yield Problem("", what, "set sharded_saves=false")
        if self.min_lr > self.learning_rate:
            what = f"min_lr {self.min_lr} is more than learning_rate {self.learning_rate}"
            yield Problem("", what, "lower it")
        micro, batch = self.micro_batch_size, self.batch_size
        if micro and batch % micro:
            what = f"micro_batch_size {micro} does not divide batch_size {batch}"
            yield Problem("", what, "choose a divisor")


class EvalConfig(Section):
    """How the validation part is scored during training."""

    max_chars: Size | None = 200_000
    """Characters scored at each evaluation, about, spread evenly over the part; null scores all of it. Of a
    longer record, the first are scored."""
    baselines: bool = True
    """Score n-grams and compressors before training, and afterwards say which the model has passed."""


class AdaptConfig(Section):
    """What a model learns while it reads a text, as in `charlm eval --protocol adaptive`."""

    counts: bool = True
    """Counted models count the characters that they have read."""
    mixing: bool = True
    """A mixture goes on learning the weights of its experts."""
    weights: bool = False
    """Models trained by gradients go on updating their weights."""
    every: Size | None = None
    """Characters between two of these updates. Null: the model's block, at most 256."""
    learning_rate: Annotated[float, Field(gt=0), Number] = 2e-4
    """The learning rate of these updates."""
    replay: Count = 0
    """Windows of the training part that each of these updates learns from as well. Each window takes
    about as long as the update itself."""


class SampleConfig(Section):
    """How samples are generated."""

    prompt: Text = ""
    """Text to continue. Empty: a newline, if the alphabet has one. In YAML, `"\\n"` is a newline."""
    max_new_chars: Count = 500
    """Characters to sample."""
    temperature: Annotated[float, Field(ge=0), Number] = 0.8
    """Divides the logits; 0 = greedy."""
    top_k: Size | None = None
    """Sample only from this many most likely characters."""
    top_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Sample only from the most likely characters that together have this probability."""
    min_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Sample only from characters with at least this share of the highest probability."""
    typical_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Sample only from the characters closest to the expected surprisal that together have this probability."""
    repetition_penalty: Annotated[float, Field(gt=0), Number] = 1.0
    """Multiplies the log-probabilities of the last 64 characters; above 1: less repetition."""


class RunConfig(Section):
    """The run's folder, seed, device, precision and use of memory."""

    out: Place | None = None
    """The run folder. Null: the next free name under `runs/`."""
    seed: Annotated[int, Field(ge=0, lt=SEEDS), Integer] = 1337
    """Seed of the initial weights, the order of the data and dropout."""
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,4})?)$"), BeforeValidator(text)
    ] = "auto"
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Or name one: cpu, mps, cuda, cuda:1."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products in training. `auto`: bfloat16 for a GPT if it is faster on this
    machine, else float32. Evaluation and sampling always use float32."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile. `auto` tries it for a GPT on CUDA, or on a CPU if the run takes more than about
    four minutes; in a time budget, if it saves twice the time that it takes on this machine. It falls
    back to eager mode with a reason; `true` requires it."""
    keep_memory: bool = True
    """On a CPU with glibc, keep the memory that a step frees for the next one, if that is faster on this
    machine. The largest use of memory stays about the same. `false`: return it to the system."""
    tensorboard: bool = False
    """Write losses, learning rate, gradient norm, speed and samples for TensorBoard too, into the run's
    folder `tensorboard`. Needs the extra `tensorboard`."""
    fused: bool = True
    """On a CPU, a GPT's training step does everything between two matrix products in one pass over
    memory. `false`: one operation after another, as in the lessons. The results are equal up to
    rounding, except that dropout drops other numbers."""
