"""The path of docs/course.md with sliders, on a text of yours: a marimo notebook.

pip install -e ".[course]"
marimo run docs/course.py      # or: marimo edit docs/course.py, to see and change the code
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="From text to GPT")

with app.setup:
    import json
    import math

    import altair as alt
    import marimo as mo
    import numpy as np
    import torch

    from charlm.errors import CharlmError
    from charlm.models import BigramModel, ModernGPT, next_token_loss
    from charlm.models.averaging import averaging_matrix
    from charlm.models.looking import attention_weights
    from charlm.reporting.glyphs import glyph
    from charlm.sampling.choose import Settings, next_probabilities
    from charlm.sampling.generate import Context, generate
    from charlm.text import Batches, CharTokenizer, IdArray, open_source


@app.cell
def _():
    mo.md(
        """
        # From text to GPT

        Each section is a chapter of `docs/course.md`, which explains the words. Move a slider, and
        all that depends on it is computed again.
        """
    )
    return


@app.cell
def _():
    name = mo.ui.text("python-docs", label="Text: a file of yours, or a name of charlm data list")
    name
    return (name,)


@app.cell
def _(name):
    try:
        source = open_source(name.value)
    except CharlmError as error:
        mo.stop(True, mo.md(str(error)))
    text = "".join(part.open().read().decode() for part in source.parts)
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    train, val = IdArray(ids[: len(ids) * 9 // 10]), IdArray(ids[len(ids) * 9 // 10 :])
    V = tokenizer.vocab_size
    mo.md(
        f"{len(text):,} characters, V = {V} different ones; uniform guessing: {math.log(V):.3f} nats"
    )
    return V, ids, tokenizer, train, val


@app.function
def heat(tables, rows, columns, size=14):
    """Draw tables of weights, each with a title, beside each other."""
    charts = []
    for title, table in tables.items():
        cells = [
            {
                "row": f"{i:03}",
                "column": f"{j:03}",
                "from": rows[i],
                "to": columns[j],
                "p": float(p),
            }
            for (i, j), p in np.ndenumerate(np.asarray(table))
        ]
        axes = {}
        for side, labels in (("row", rows), ("column", columns)):
            names = f"{json.dumps(labels)}[+datum.value]"
            axes[side] = alt.Axis(labelExpr=names, labelAngle=0, ticks=False, title=None)
        chart = alt.Chart(alt.Data(values=cells), title=title)
        chart = chart.mark_rect().encode(
            alt.X("column:N", axis=axes["column"]),
            alt.Y("row:N", axis=axes["row"]),
            alt.Color("p:Q", scale=alt.Scale(scheme="blues"), legend=None),
            tooltip=["from:N", "to:N", alt.Tooltip("p:Q", format=".3f")],
        )
        charts.append(chart.properties(width=alt.Step(size), height=alt.Step(size)))
    return alt.hconcat(*charts)


@app.cell
def _():
    mo.md("## 1. Characters and ids")
    return


@app.cell
def _():
    words = mo.ui.text("def attention", label="some words")
    words
    return (words,)


@app.cell
def _(tokenizer, words):
    found = tokenizer.encode(words.value, unknown="skip")
    signs = [glyph(tokenizer.alphabet[i]) for i in found]
    mo.plain_text("\n".join("".join(f"{each:>4}" for each in row) for row in (signs, found)))
    return


@app.cell
def _():
    block_size = mo.ui.slider(4, 64, value=32, step=4, label="block size T", show_value=True)
    step = mo.ui.slider(0, 100, label="step", show_value=True)
    mo.vstack([mo.md("## 2. Blocks and batches"), block_size, step])
    return block_size, step


@app.cell
def _(block_size, step, tokenizer, train):
    batch = Batches(train, block_size.value, batch_size=4, seed=1).get(step.value)
    rows = [map(repr, map(tokenizer.decode, pair)) for pair in zip(*batch, strict=True)]
    mo.plain_text("\n".join(f"x = {x}\ny = {y}\n" for x, y in rows))
    return (batch,)


@app.function
def fit(model, train, steps, learning_rate):
    """Train; return the loss of each step, in nats."""
    batches = Batches(train, model.block_size, batch_size=16, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for k in mo.status.progress_bar(range(steps), title="training"):
        x, y = map(torch.from_numpy, batches.get(k))
        loss = next_token_loss(model(x), y.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@app.cell
def _(V, ids, train):
    pairs = ids[:-1].astype(np.int64) * V + ids[1:]
    counts = np.bincount(pairs, minlength=V * V).reshape(V, V)
    counted = (counts + 1e-9) / (counts + 1e-9).sum(axis=1, keepdims=True)
    bigram = BigramModel(V, 32)
    bigram_losses = fit(bigram, train, steps=300, learning_rate=0.1)
    trained = bigram.table.weight.detach().softmax(dim=1).numpy()
    return bigram, bigram_losses, counted, counts, trained


@app.cell
def _(counted, counts, tokenizer, trained):
    most = np.argsort(-counts.sum(axis=1))[:24]  # the most frequent characters
    labels = [glyph(tokenizer.alphabet[i]) for i in most]
    square = np.ix_(most, most)
    mo.vstack(
        [
            mo.md("## 3. The bigram table: the row is the character now, the column the next one"),
            heat({"counted": counted[square], "trained": trained[square]}, labels, labels),
        ]
    )
    return


@app.cell
def _(tokenizer):
    after = mo.ui.dropdown({glyph(c): c for c in tokenizer.alphabet}, value="t", label="after")
    bigram_temperature = mo.ui.slider(
        0.1, 3, value=1, step=0.1, label="temperature", show_value=True
    )
    mo.hstack([after, bigram_temperature], justify="start")
    return after, bigram_temperature


@app.cell
def _(after, bigram, bigram_temperature, tokenizer):
    logits = bigram.table.weight.detach().numpy()[tokenizer.encode(after.value)]
    p = next_probabilities(logits, Settings(temperature=bigram_temperature.value))[0]
    bars = [{"next": glyph(tokenizer.alphabet[i]), "p": float(p[i])} for i in np.argsort(-p)[:20]]
    alt.Chart(alt.Data(values=bars)).mark_bar().encode(
        alt.X("next:N", sort=None, axis=alt.Axis(labelAngle=0)), alt.Y("p:Q")
    )
    return (p,)


@app.cell
def _():
    sharpness = mo.ui.slider(0, 8, value=0, step=0.5, label="scores times", show_value=True)
    mo.vstack([mo.md("## 4. Looking back: at 0 an average, then a choice"), sharpness])
    return (sharpness,)


@app.cell
def _(sharpness):
    T = 12
    scores = sharpness.value * torch.randn(T, T, generator=torch.Generator().manual_seed(4))
    future = torch.tril(torch.ones(T, T)) == 0
    weights = scores.masked_fill(future, -math.inf).softmax(dim=1)
    places = [str(t) for t in range(T)]
    heat({"average": averaging_matrix(T), "softmax of scores": weights}, places, places)
    return (weights,)


@app.cell
def _():
    steps = mo.ui.slider(50, 2000, value=200, step=50, label="steps", show_value=True)
    n_layer = mo.ui.slider(1, 4, value=2, label="blocks", show_value=True)
    n_head = mo.ui.dropdown(["1", "2", "4", "8"], value="4", label="heads")
    mo.vstack([mo.md("## 5 to 10. A GPT in the modern style"), steps, n_layer, n_head])
    return n_head, n_layer, steps


@app.cell
def _(V, block_size, n_head, n_layer, steps, train):
    sizes = {"n_layer": n_layer.value, "n_head": int(n_head.value), "n_embd": 64}
    generator = torch.Generator().manual_seed(5)
    model = ModernGPT(V, max(8, block_size.value), **sizes, generator=generator)
    gpt_losses = fit(model, train, steps.value, learning_rate=1e-2)
    model.eval()
    mo.md(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    return gpt_losses, model


@app.cell
def _(bigram_losses, gpt_losses):
    curves = [
        {"step": k, "nats": float(np.mean(losses[max(0, k - 9) : k + 1])), "model": label}
        for label, losses in (("bigram", bigram_losses), ("GPT", gpt_losses))
        for k in range(len(losses))
    ]
    line = alt.Chart(alt.Data(values=curves), title="training loss, mean of ten steps").mark_line()
    line.encode(alt.X("step:Q"), alt.Y("nats:Q", scale=alt.Scale(zero=False)), alt.Color("model:N"))
    return


@app.cell
def _(model, n_head, n_layer):
    layer = mo.ui.slider(1, n_layer.value, label="block", show_value=True)
    head = mo.ui.slider(1, int(n_head.value), label="head", show_value=True)
    passage = mo.ui.text("The value of the name", label="passage")
    mo.vstack([mo.md("### Where a head looks"), layer, head, passage])
    return head, layer, passage


@app.cell
def _(head, layer, model, passage, tokenizer):
    seen = tokenizer.encode(passage.value, unknown="skip")[: model.block_size]
    mo.stop(not len(seen), "the text has none of these characters")
    attention = attention_weights(model, torch.from_numpy(seen).long())
    letters = [glyph(tokenizer.alphabet[i]) for i in seen]
    title = "the row is where it stands, the column where it looks"
    heat({title: attention[layer.value - 1, head.value - 1]}, letters, letters, size=20)
    return (attention,)


@app.cell
def _():
    temperature = mo.ui.slider(0, 2, value=0.8, step=0.1, label="temperature", show_value=True)
    seed = mo.ui.slider(0, 20, label="seed", show_value=True)
    prompt = mo.ui.text("The ", label="prompt")
    mo.vstack([mo.md("### Let it write"), prompt, temperature, seed])
    return prompt, seed, temperature


@app.cell
def _(model, prompt, seed, temperature, tokenizer):
    given = tokenizer.encode(prompt.value, unknown="skip")
    mo.stop(not len(given), "begin with a character of the text")
    settings = Settings(temperature=temperature.value)
    drawn = generate(Context(model, given), 300, settings, [seed.value])
    written = prompt.value + tokenizer.decode(int(one.idx[0]) for one in drawn)
    mo.plain_text(written)
    return (written,)


@app.cell
def _():
    mo.md(
        """
        ## 11. And then

        `charlm train --config gpt` trains a larger one. `docs/backprop.md` derives its gradients by hand.
        """
    )
    return


if __name__ == "__main__":
    app.run()
