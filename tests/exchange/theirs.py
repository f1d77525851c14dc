"""The models of other programs, under their names, in steps of our own: slow and plain."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, n_embd, n_head, bias, block_size):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.n_head = n_head
        if block_size:
            mask = torch.ones(block_size, block_size).tril()
            self.register_buffer("bias", mask[None, None])

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.n_head, -1).transpose(1, 2)
            for part in self.c_attn(x).split(c, dim=2)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c)
        return self.c_proj(y)


def gelu_by_tanh(x):
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


class Block(nn.Module):
    def __init__(self, n_embd, n_head, bias, gelu, block_size):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(n_embd, bias=bias) for _ in range(2))
        self.attn = Attention(n_embd, n_head, bias, block_size)
        parts = {"c_fc": (n_embd, 4 * n_embd), "c_proj": (4 * n_embd, n_embd)}
        self.mlp = nn.ModuleDict(
            {name: nn.Linear(*sizes, bias=bias) for name, sizes in parts.items()}
        )
        self.gelu = gelu

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    """nanoGPT's model; with `old`, that of minGPT and makemore."""

    def __init__(self, vocab_size, n_layer, n_head, n_embd, block_size, bias=False, old=False):
        super().__init__()
        gelu, masks = (gelu_by_tanh, block_size) if old else (F.gelu, 0)
        blocks = (Block(n_embd, n_head, bias or old, gelu, masks) for _ in range(n_layer))
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(n_embd, bias=bias or old),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        if not old:
            self.lm_head.weight = self.transformer["wte"].weight
        randomise(self)

    def forward(self, idx):
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class Bigram(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(vocab_size, vocab_size))
        randomise(self)

    def forward(self, idx):
        return self.logits[idx]


class MLP(nn.Module):
    def __init__(self, vocab_size, context, n_embd, n_hidden):
        super().__init__()
        self.wte = nn.Embedding(vocab_size + 1, n_embd)  # the last row: nothing
        out = nn.Linear(n_hidden, vocab_size)
        self.mlp = nn.Sequential(nn.Linear(context * n_embd, n_hidden), nn.Tanh(), out)
        self.context = context
        randomise(self)

    def forward(self, idx):
        nothing = self.wte.num_embeddings - 1
        rows = []
        for row in idx.tolist():
            seen = [
                [row[t - k] if k <= t else nothing for k in range(self.context)]
                for t in range(len(row))
            ]
            rows.append(self.wte(torch.tensor(seen)).flatten(1))
        return self.mlp(torch.stack(rows))


class BagOfWords(nn.Module):
    def __init__(self, vocab_size, n_embd, n_hidden, block_size):
        super().__init__()
        self.wte, self.wpe = (nn.Embedding(n, n_embd) for n in (vocab_size, block_size))
        self.context_block = nn.ModuleDict({"cbow": nn.Module(), "mlp": nn.ModuleDict()})
        self.context_block["mlp"]["c_fc"] = nn.Linear(n_embd, n_hidden)
        self.context_block["mlp"]["c_proj"] = nn.Linear(n_hidden, n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        mask = torch.ones(1, block_size, block_size).tril()
        self.context_block["cbow"].register_buffer("bias", mask)
        randomise(self)

    def forward(self, idx):
        count = torch.arange(1, idx.shape[1] + 1)
        x, layers = self.wte(idx) + self.wpe(count - 1), self.context_block["mlp"]
        x = x + x.cumsum(1) / count[:, None]
        return self.lm_head(x + layers["c_proj"](layers["c_fc"](x).tanh()))


class Cell(nn.Module):
    def __init__(self, n_embd, n_hidden, names):
        super().__init__()
        for name in names:
            setattr(self, f"xh_to_{name}", nn.Linear(n_embd + n_hidden, n_hidden))


class Recurrent(nn.Module):
    """Its `rnn`, or `gru`."""

    def __init__(self, vocab_size, n_embd, n_hidden, gru):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, n_hidden))
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.cell = Cell(n_embd, n_hidden, ("z", "r", "hbar") if gru else ("h",))
        self.lm_head = nn.Linear(n_hidden, vocab_size)
        self.gru = gru
        randomise(self)

    def forward(self, idx):
        h, out, cell = self.start.repeat(len(idx), 1), [], self.cell
        for x in self.wte(idx).unbind(1):
            if not self.gru:
                h = cell.xh_to_h(torch.cat([x, h], 1)).tanh()
            else:
                both = torch.cat([x, h], 1)
                update, reset = cell.xh_to_z(both).sigmoid(), cell.xh_to_r(both).sigmoid()
                candidate = cell.xh_to_hbar(torch.cat([x, reset * h], 1)).tanh()
                h = h + update * (candidate - h)
            out.append(self.lm_head(h))
        return torch.stack(out, 1)


def randomise(model):
    """Let no weight be zero or one, so that each matters."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)


def loss_of_lines(model, lines, symbols):
    """Return makemore's loss: 0 stands before and after each line, characters begin at 1."""
    ids = {symbol: i + 1 for i, symbol in enumerate(symbols)}
    total, count = 0.0, 0
    for line in lines:
        row = torch.tensor([0, *(ids[c] for c in line), 0])
        logits = model(row[None, :-1])[0]
        total += F.cross_entropy(logits, row[1:], reduction="sum").item()
        count += len(row) - 1
    return total / count
