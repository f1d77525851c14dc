"use strict";
(() => {
  document.documentElement.classList.add("js");
  const data = JSON.parse(document.getElementById("data").textContent);

  function made(tag, look, text) {
    const element = document.createElement(tag);
    if (look) element.className = look;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");
  const inBits = (bits) => (bits === null ? "infinitely many bits" : `${bits.toFixed(2)} bits`);

  // A passage of which one symbol at a time is chosen. `label(i)` is what a screen reader says of it,
  // `show(i)` is called when it is chosen or pointed at.
  function picker(box, first, label, show) {
    const cells = [...box.querySelectorAll(".c")];
    let at = -1;
    box.tabIndex = 0;
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-label", box.dataset.label);
    box.querySelectorAll(".line").forEach((line) => line.setAttribute("role", "presentation"));
    cells.forEach((cell, i) => {
      cell.removeAttribute("title");
      cell.setAttribute("role", "option");
      cell.setAttribute("aria-selected", "false");
      cell.id = `${box.id}-${i}`;
    });
    const relabel = () => cells.forEach((cell, i) => cell.setAttribute("aria-label", label(i)));
    relabel();

    function choose(i, follow) {
      if (at >= 0) {
        cells[at].classList.remove("at");
        cells[at].setAttribute("aria-selected", "false");
      }
      at = Math.max(0, Math.min(cells.length - 1, i));
      cells[at].classList.add("at");
      cells[at].setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", cells[at].id);
      if (follow) cells[at].scrollIntoView({ block: "nearest" });
      show(at);
    }

    // The symbol nearest to the chosen one in the next row of the screen, above or below.
    function beyond(step) {
      const from = cells[at].getBoundingClientRect();
      const middle = (from.left + from.right) / 2;
      let best = -1, row = null, off = Infinity;
      for (let i = at + step; i >= 0 && i < cells.length; i += step) {
        const to = cells[i].getBoundingClientRect();
        const apart = step * (to.top - from.top) > from.height / 2;
        if (!apart) continue;
        if (row === null) row = to.top;
        if (step * (to.top - row) > from.height / 2) break;
        const away = Math.abs((to.left + to.right) / 2 - middle);
        if (away < off) [best, off] = [i, away];
      }
      return best < 0 ? at : best;
    }

    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const on = Math.max(at, 0);
      const line = cells[on].closest(".line");
      const forward = line.matches(":dir(rtl)") ? -1 : 1;
      const inLine = [...line.querySelectorAll(".c")];
      const target = {
        ArrowRight: () => on + forward,
        ArrowLeft: () => on - forward,
        ArrowDown: () => beyond(1),
        ArrowUp: () => beyond(-1),
        Home: () => cells.indexOf(inLine[0]),
        End: () => cells.indexOf(inLine[inLine.length - 1]),
      }[event.key];
      if (!target) return;
      event.preventDefault();
      choose(target(), true);
    });
    box.addEventListener("focus", () => { if (at < 0) choose(first, false); });
    box.addEventListener("click", (event) => {
      const cell = event.target.closest(".c");
      if (cell) choose(cells.indexOf(cell), false);
    });
    let over = null;
    box.addEventListener("pointerover", (event) => {
      const cell = event.target.closest(".c");
      if (over) over.classList.remove("over");
      over = cell;
      if (!cell) return;
      cell.classList.add("over");
      show(cells.indexOf(cell));
    });
    box.addEventListener("pointerleave", () => {
      if (over) over.classList.remove("over");
      over = null;
      show(at);
    });
    show(at);
    return { cells, again: () => { relabel(); show(at); } };
  }

  // The surprise map.
  const map = data.map;
  const detail = document.getElementById("map-detail");
  const glyph = (k) => map.symbols[k][0];
  const name = (k) => map.symbols[k][1];
  let model = map.models[0];

  function heading(k) {
    const title = made("h3");
    title.append(made("span", "glyph", glyph(k)));
    if (name(k) !== glyph(k)) title.append(` ${name(k)}`);
    return title;
  }

  function explain(i) {
    detail.replaceChildren();
    if (i < 0) {
      detail.append(made("p", "keys", map.hint));
      return;
    }
    const seen = map.at[i];
    detail.append(heading(seen));
    if (i === 0) {
      detail.append(made("p", "", "Not predicted: nothing comes before it."));
      return;
    }
    const bits = model.bits[i - 1];
    const p = bits === null ? 0 : 2 ** -bits;
    detail.append(made("p", "bits", `${inBits(bits)}: its probability was ${percent(p)}`));
    const list = made("ol", "bars");
    list.setAttribute("aria-label", "Likeliest in its place");
    model.likeliest[i - 1].forEach((k, rank) => {
      const share = model.p[i - 1][rank] / map.scale;
      const row = made("li", k === seen ? "true" : "");
      const label = made("span", "glyph", glyph(k));
      label.title = name(k);
      const track = made("span");
      const bar = made("span", "bar");
      bar.style.display = "block";
      bar.style.width = `${100 * share}%`;
      track.append(bar);
      row.append(label, track, made("span", "share", percent(share)));
      list.append(row);
    });
    detail.append(list);
  }

  function said(i) {
    return i === 0 ? `${name(map.at[0])}, not predicted` : `${name(map.at[i])}, ${inBits(model.bits[i - 1])}`;
  }

  const level = (bits) => (bits === null ? map.steps.length : map.steps.filter((least) => bits >= least).length);
  const surprise = picker(document.getElementById("map"), 1, said, explain);
  document.querySelectorAll("input[name=model]").forEach((input) => {
    input.checked = input.value === "0"; // a browser may remember another
    input.addEventListener("change", () => {
      model = map.models[Number(input.value)];
      surprise.cells.forEach((cell, i) => {
        if (i === 0) return;
        cell.className = cell.className.replace(/\bb\d\b/, `b${level(model.bits[i - 1])}`);
      });
      surprise.again();
    });
  });

  // What the heads look at.
  function attention(look, section) {
    const bytes = Uint8Array.from(atob(look.shades), (c) => c.charCodeAt(0));
    const size = look.at.length;
    const triangle = (size * (size + 1)) / 2;
    const called = (i) => look.symbols[look.at[i]];
    const shade = (layer, head, t, s) => bytes[(layer * look.heads + head) * triangle + (t * (t + 1)) / 2 + s] / 255;
    const chosen = section.querySelector(".chosen");
    const tiles = [...section.querySelectorAll(".head")].map((tile) => {
      const mini = made("span", "mini");
      mini.setAttribute("aria-hidden", "true");
      const marks = look.at.map((k) => made("span", "", look.texts[k]));
      mini.append(...marks);
      const row = made("span", "row");
      row.hidden = true;
      tile.querySelector(".frame").append(row);
      tile.querySelector(".frame").after(mini);
      return { tile, marks, row, layer: Number(tile.dataset.layer), head: Number(tile.dataset.head), large: tile.querySelector(".large") };
    });
    let shown = -1;

    function enlarge(one) {
      one.large.replaceChildren();
      if (!one.tile.open || shown < 0) return;
      const weights = look.at.slice(0, shown + 1).map((_, s) => shade(one.layer, one.head, shown, s) ** 2);
      const order = weights.map((_, s) => s).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
      one.large.append(made("p", "", "From there it looks most at:"));
      const list = made("ol", "bars");
      order.forEach((s) => {
        const item = made("li");
        const back = shown - s === 0 ? "itself" : `${shown - s} back`;
        const track = made("span");
        const bar = made("span", "bar");
        bar.style.display = "block";
        bar.style.width = `${100 * weights[s]}%`;
        track.append(bar);
        const label = made("span");
        label.append(made("span", "glyph", called(s)[0]), ` ${back}`);
        item.append(label, track, made("span", "share", percent(weights[s])));
        list.append(item);
      });
      one.large.append(list);
    }

    function show(i) {
      shown = i;
      chosen.replaceChildren(`Looking from number ${i + 1} of ${size}: `, made("span", "glyph", called(i)[0]));
      if (called(i)[1] !== called(i)[0]) chosen.append(` ${called(i)[1]}`);
      for (const one of tiles) {
        one.marks.forEach((mark, s) => {
          mark.style.setProperty("--w", i >= 0 && s <= i ? shade(one.layer, one.head, i, s) : 0);
          mark.classList.toggle("self", s === i);
        });
        one.row.hidden = i < 0;
        if (i >= 0) one.row.style.top = `${(100 * (i + 0.5)) / size}%`;
        enlarge(one);
      }
    }

    tiles.forEach((one) => one.tile.addEventListener("toggle", () => enlarge(one)));
    const box = section.querySelector(".passage");
    const last = size - 1;
    picker(box, last, (i) => `${called(i)[1]}, number ${i + 1}`, (i) => show(i < 0 ? last : i));
  }

  document.querySelectorAll(".looking").forEach((section, i) => attention(data.lookings[i], section));
})();
