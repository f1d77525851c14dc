"""Every key of a configuration: its meaning, its default, its range.

The models are frozen and refuse unknown keys. Numbers are read as people mean them (`1e-3` is a
number although YAML 1.1 calls it text) and nothing else is adjusted: a value is taken or refused.
"""

import codecs
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_SYMBOLS = 2**21  # Unicode ends at 0x10FFFF, just below 2^21
MINUTES = 1_000_000  # two years: the longest budget
NO_TEXTS = {"idna", "punycode"}  # encodings of names, which read no text piece by piece
SEEDS = 2**63  # how many there are: what a signed 64-bit number, and so any library, can hold
MAX_COUNTED_WINDOW = 16_384  # training them does not bound it by memory, as it does of the others

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_NUMBER = re.compile(
    rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.?(inf|nan)", re.IGNORECASE
)
_MAX_DIGITS = 300  # products of several such numbers must still be written out in messages


def _number(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = value.lower().replace(".inf", "inf").replace(".nan", "nan")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {shown(value)}")
    return number


def _integer(value: Any) -> int:
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer, got {shown(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}; in a file, put it in quotes")
    try:
        value.encode("utf-8", "surrogateescape")  # a file's name may hold bytes that are not UTF-8
    except UnicodeEncodeError:
        raise ValueError(
            f"{shown(value)} holds half of a surrogate pair; write the character itself"
        ) from None
    return value


def _place(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError(f"expected a name or a path, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Quote a value that was given, for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


# Stands last in `Annotated`: first read, then the range that stands before it (and in the schema).
Number = BeforeValidator(_number)
Integer = BeforeValidator(_integer)
Text = Annotated[str, BeforeValidator(_text)]
Place = Annotated[Text, AfterValidator(_place)]
Size = Annotated[int, Field(ge=1), Integer]
Count = Annotated[int, Field(ge=0), Integer]
CountedWindow = Annotated[int, Field(ge=1, le=MAX_COUNTED_WINDOW), Integer]


class _Section(BaseModel):
    """A frozen group of keys whose cross-checks are all reported at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong between the keys of this section, one line each."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> "_Section":
        found = list(self.conflicts())
        if found:
            raise ValueError(*found)
        return self


class DataConfig(_Section):
    """The text: where it comes from, how it is split, what a symbol is."""

    source: Place = "python-docs"
    """A named text (`charlm data list`), a file, a folder, a glob such as `texts/*.txt`, or `-`."""
    val_fraction: Annotated[float, Field(ge=0, lt=1), Number] = 0.1
    """Share of the text, by position, held out for validation, after the training part."""
    test_fraction: Annotated[float, Field(ge=0, lt=1), Number] = 0.0
    """Share of the text, by position, held out for a final test, at the very end."""
    unit: Literal["chars", "bytes"] = "chars"
    """`chars`: each Unicode character is a symbol. `bytes`: the 256 byte values; takes any file."""
    encoding: Text = "utf-8"
    """How the bytes of the text are decoded when `unit` is `chars`."""
    max_vocab: Annotated[int, Field(ge=1, le=MAX_SYMBOLS), Integer] = 65_536
    """Refuse a text with more distinct characters than this."""

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        if self.val_fraction + self.test_fraction >= 1:
            yield (
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} "
                "leave nothing to train on; together they must stay below 1"
            )
        try:
            "".encode(self.encoding)
            known = codecs.lookup(self.encoding).name not in NO_TEXTS
        except (LookupError, ValueError):
            known = False
        if not known:
            yield f"encoding: unknown {self.encoding!r}; utf-8, utf-16 and latin-1 are common"


class _Model(_Section):
    block_size: Size = 64
    """Characters in a training window: the longest context the model looks at."""


class BigramConfig(_Model):
    """One table: each character reads off the logits of the next."""

    type: Literal["bigram"]
    """Which model this is."""


class AveragingConfig(_Model):
    """The mean of the past, by a lower-triangular matrix, joins the character's own embedding."""

    type: Literal["averaging"]
    """Which model this is."""
    n_embd: Size = 64
    """Channels of an embedding (C)."""


class _WithHeads(_Model):
    n_embd: Size = 64
    """Channels of an embedding (C)."""
    n_head: Size = 4
    """Heads of attention (H); each has n_embd / n_head channels."""

    def conflicts(self) -> Iterator[str]:
        if self.n_embd % self.n_head:
            divisors = [d for d in range(1, min(self.n_embd, 64) + 1) if self.n_embd % d == 0]
            nearest = sorted(sorted(divisors, key=lambda d: abs(d - self.n_head))[:2])
            yield (
                f"n_head: {self.n_head} does not divide n_embd {self.n_embd}; "
                f"choose a divisor such as {' or '.join(map(str, nearest))}"
            )


class AttentionConfig(_Model):
    """One head of self-attention."""

    type: Literal["attention"]
    """Which model this is."""
    n_embd: Size = 64
    """Channels of an embedding (C), and of the one head."""


class MultiHeadConfig(_WithHeads):
    """Many heads of self-attention in one projection."""

    type: Literal["multihead"]
    """Which model this is."""


class GPTConfig(_WithHeads):
    """A stack of attention and MLP blocks, in one of two styles."""

    type: Literal["gpt"]
    """Which model this is."""
    style: Literal["gpt2", "modern"] = "modern"
    """`gpt2`: learned positions, LayerNorm, GELU, tied embeddings, as nanoGPT. `modern`: rotary
    positions, RMSNorm, normalised queries and keys, token shift, squared ReLU, zero-initialised
    projections."""
    n_layer: Size = 4
    """Blocks in the stack."""
    dropout: Annotated[float, Field(ge=0, lt=1), Number] = 0.0
    """Probability of dropping an activation in training."""
    n_gram: Annotated[int, Field(ge=1, le=16), Integer] = 1
    """Of `modern`: characters of the longest n-gram that has an embedding beside the character's own,
    in 8,192 rows for each length, half of them dropped in training. 1: none. 5 learns faster."""

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        yield from super().conflicts()
        if self.style == "gpt2" and self.n_gram > 1:
            yield f"n_gram: {self.n_gram} needs style: modern; leave it 1"
        if self.style == "modern" and self.n_embd % self.n_head == 0:
            head_size = self.n_embd // self.n_head
            if head_size % 2:
                yield (
                    f"n_embd {self.n_embd} over n_head {self.n_head} gives heads of {head_size} "
                    "channels; rotary positions turn pairs, so it must be even"
                )


class NGramConfig(_Model):
    """Counted, not trained: what followed each context of up to order - 1 characters."""

    type: Literal["ngram"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters in a window when it is scored in windows; it looks back order - 1 at most."""
    order: Annotated[int, Field(ge=1, le=32), Integer] = 7
    """Characters of the longest n-gram: the context and the one that follows."""
    smoothing: Literal["kneser-ney", "witten-bell", "add-k"] = "kneser-ney"
    """What becomes of rare and unseen contexts: `kneser-ney` (modified, interpolated) asks shorter
    ones, `witten-bell` too; `add-k` adds `add_k` to each count of the full context."""
    add_k: Annotated[float, Field(ge=1e-6, le=1e6), Number] = 1.0
    """What `add-k` adds to every count."""
    min_count: Size = 1
    """Leave out n-grams, of two characters and more, that occur less often."""
    last_chars: Size | None = None
    """Count only this many characters, those at the end of the training part; null counts all."""

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        if self.last_chars is not None and self.last_chars < self.order:
            yield f"last_chars {self.last_chars} is less than order {self.order}; raise it"


SingleModelConfig = (
    BigramConfig | AveragingConfig | AttentionConfig | MultiHeadConfig | GPTConfig | NGramConfig
)


class TrainConfig(_Section):
    """How the weights are fitted."""

    max_steps: Count = 2000
    """Optimizer updates, exactly."""
    minutes: Annotated[float, Field(gt=0, le=MINUTES), Number] | None = None
    """Wall-clock budget. When set it takes the place of `max_steps`, and the schedule ends on time."""
    plan: bool = False
    """With `minutes`, and for `style: modern` with `muon`: choose the size, batch, rate, decay and
    dropout for the time, the text and this machine, in place of what stands here. KEY=VALUE stays."""
    batch_size: Size = 32
    """Windows in one update, however many processes or micro-batches share them."""
    micro_batch_size: Size | None = None
    """Windows in one forward pass; gradients accumulate over them. Null: the whole batch."""
    init_from: str | None = None
    """A run whose best weights to begin with, of the same model and alphabet. Null: random ones."""
    gradients: Literal["autograd", "by_hand"] = "autograd"
    """Who works out the gradients: PyTorch, or the rules of `charlm.backprop` (see docs/backprop.md)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the hidden matrices, AdamW for everything else."""
    learning_rate: Annotated[float, Field(gt=0), Number] = 1e-3
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so it serves both."""
    min_lr: Annotated[float, Field(ge=0), Number] = 1e-4
    """Learning rate at the end of the schedule."""
    warmup_steps: Count = 100
    """Updates over which the rate rises linearly from near zero."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: `cosine` down to `min_lr`; `wsd` stable, then linear decay over the last
    fifth; `constant`."""
    beta1: Annotated[float, Field(ge=0, lt=1), Number] = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1), Number] = 0.99
    """AdamW's decay of the mean squared gradient."""
    weight_decay: Annotated[float, Field(ge=0), Number] = 0.1
    """Decoupled decay of matrices and embeddings; vectors are not decayed."""
    grad_clip: Annotated[float, Field(ge=0), Number] = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    eval_every: Size = 250
    """Updates between evaluations on the validation part; also before the first and after the last."""
    sample_every: Count = 0
    """Updates between samples written to `samples/`, all from one prompt and seed; 0: none."""
    sample_chars: Count = 200
    """Characters of such a sample."""
    save_every: Count = 0
    """Updates between checkpoints; 0 saves only each new best and the last."""
    patience: Size | None = None
    """Stop after this many evaluations without a new best."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """When a loss or gradient is NaN or infinite: stop; `skip` the step, three in a row at most; or
    `rollback` to the best checkpoint and go on at half the rate, three times at most."""

    DECAY_SHARE: ClassVar[float] = 0.2  # of a `wsd` schedule; the literature uses 0.1 to 0.3

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        if self.init_from and self.plan and self.minutes is not None:
            yield "plan chooses a size and init_from has one; set plan=false"
        if self.warmup_steps > self.max_steps and self.minutes is None:
            yield (
                f"warmup_steps {self.warmup_steps} is more than max_steps {self.max_steps}; "
                "lower it or train longer"
            )
        if self.min_lr > self.learning_rate:
            yield (
                f"min_lr {self.min_lr} is more than learning_rate {self.learning_rate}; lower it"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            yield (
                f"micro_batch_size {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}; choose a divisor"
            )


def _unfit(model: SingleModelConfig, train: TrainConfig) -> Iterator[str]:
    """Yield what a model cannot be trained with."""
    if train.optimizer == "muon" and model.type in ("bigram", "averaging", "ngram"):
        yield (
            f"train.optimizer: muon needs a hidden 2-D matrix and model {model.type!r} "
            "has none; use adamw"
        )
    if train.init_from and model.type == "ngram":
        yield "train.init_from: model 'ngram' is counted and has no first weights; leave it out"
    if train.gradients == "by_hand" and model.type == "ngram":
        yield "train.gradients: model 'ngram' is counted and has no gradients; leave it autograd"


class ExpertConfig(_Section):
    """One model of a mixture: a run that was trained before, or a model trained on the spot."""

    run: Place | None = None
    """A run folder to take it from, its best checkpoint."""
    model: Annotated[SingleModelConfig, Field(discriminator="type")] | None = None
    """What to train on the spot; of a run, filled in from its configuration."""
    train: TrainConfig = TrainConfig()
    """How it is trained. Minutes of the mixture (`train.minutes`) are shared by all experts and take
    the place of their own. It is not scored alone."""

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        if self.run is None and self.model is None:
            yield "expected the key run (a run folder) or model (what to train)"
        elif self.run is None and self.model is not None:
            yield from _unfit(self.model, self.train)


class MixtureConfig(_Model):
    """Experts whose predictions are joined: multiplied, or averaged."""

    type: Literal["mixture"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters in a window when it is scored in windows; an expert with a shorter block sees at
    least half of its block."""
    combine: Literal["log-linear", "linear"] = "log-linear"
    """`log-linear`: multiply powers of the probabilities, renormalised. `linear`: their mean."""
    tune_fraction: Annotated[float, Field(gt=0, lt=1), Number] = 0.1
    """Share of the training part, at its end, that the weights are fitted on, before any expert
    has seen it."""
    experts: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")], ExpertConfig],
        Field(json_schema_extra={"additionalProperties": False, "minProperties": 1}),
    ]
    """The experts by name."""

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        if not self.experts:
            yield "experts: none; name at least one, such as 'counts: {model: {type: ngram}}'"


ModelConfig = SingleModelConfig | MixtureConfig


class EvalConfig(_Section):
    """How the validation part is scored while training."""

    max_chars: Size | None = 200_000
    """Characters scored at each evaluation, spread evenly over the part; null scores all of it."""
    baselines: bool = True
    """Print what n-grams and compressors reach before training, and which of them it got past."""


class SampleConfig(_Section):
    """How text is drawn."""

    prompt: Text = ""
    """What the text starts from. Empty: a newline, where the alphabet has one."""
    max_new_chars: Count = 500
    """Characters to draw."""
    temperature: Annotated[float, Field(ge=0), Number] = 0.8
    """Divides the logits; 0 takes the likeliest character."""
    top_k: Size | None = None
    """Draw only from this many likeliest characters."""
    top_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Draw only from the likeliest characters that together have this probability."""
    min_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Draw only from characters at least so many times as likely as the likeliest."""
    typical_p: Annotated[float, Field(gt=0, le=1), Number] | None = None
    """Draw only from the characters nearest to the expected surprise that together have this probability."""
    repetition_penalty: Annotated[float, Field(gt=0), Number] = 1.0
    """Multiplies the log-probability of each character among the last 64; above 1: less repetition."""


class RunConfig(_Section):
    """Where and on what the run happens."""

    out: Place | None = None
    """The run folder. Null: the next free name under `runs/`."""
    seed: Annotated[int, Field(ge=0, lt=SEEDS), Integer] = 1337
    """Decides the first weights, the order of the data and the dropout."""
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,4})?)$"), BeforeValidator(_text)
    ] = "auto"
    """`auto` takes CUDA, then Apple's MPS, then the CPU. Or name one: cpu, mps, cuda, cuda:1."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products in training. `auto`: bfloat16 for a GPT where the machine is faster
    at it, else float32. Losses are measured, and text is drawn, in float32."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile. `auto` tries it for a GPT on CUDA, and on a CPU if the run is to take more than
    some four minutes, and falls back with a reason; `true` insists on it."""


class Config(_Section):
    """A whole run."""

    data: DataConfig = DataConfig()
    model: Annotated[ModelConfig, Field(discriminator="type")]
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sample: SampleConfig = SampleConfig()
    run: RunConfig = RunConfig()

    def conflicts(self) -> Iterator[str]:  # noqa: D102
        by_hand = self.train.gradients == "by_hand"
        if isinstance(self.model, MixtureConfig):
            for key, usual in (("optimizer", "adamw"), ("gradients", "autograd")):
                if getattr(self.train, key) != usual:
                    yield (
                        f"train.{key}: a mixture is joined and each expert has its own training; "
                        f"set model.experts.NAME.train.{key}"
                    )
            trained = [expert.train for expert in self.model.experts.values() if not expert.run]
            by_hand = any(train.gradients == "by_hand" for train in trained)
        else:
            yield from _unfit(self.model, self.train)
        if by_hand and self.run.compile is True:
            yield (
                "run.compile: true compiles what autograd goes through and train.gradients: "
                "by_hand does without it; set one of them back"
            )
