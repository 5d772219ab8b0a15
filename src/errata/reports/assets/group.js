"use strict";
/* A whole group side by side: every attempt at one problem in one step, coloured on one scale. */
(() => {
  const { el, number, attempts, sheet } = errata;

  function column(row, open, chosen) {
    const [look, word] = attempts.verdictOf(row), known = chosen && attempts.has(chosen, row), top = known ? attempts.scaleOf(chosen, null) : 0;
    const flow = attempts.partsOf(row).map((part) => el("div", { class: `turn ${part.own ? "own" : "given"}` }, part.own ? (part.title ? el("span", { class: "role" }, part.title) : null) : el("span", { class: "role" }, part.from_whom),
      part.own ? el("div", { class: "flow" }, ...row.tokens.slice(part.from, part.to).map((text, i) => {
        const span = el("span", { class: "tint" }, attempts.visible(text).replaceAll("↵\n", "\n"));
        if (known) sheet.tint(span, chosen, attempts.valueOf(chosen, row, part.from + i), top);
        return span;
      })) : el("p", { class: "output" }, row.tokens.slice(part.from, part.to).filter((text) => !attempts.SPECIAL.test(text)).join(""))));
    const values = known ? attempts.valuesOf(chosen, row).filter((v) => v !== null) : [];
    const mean = values.length ? `${attempts.nameOf(chosen, row)} ${number(values.reduce((a, b) => a + b, 0) / values.length)}` : "no signals recorded";
    return el("article", { class: "column", tabindex: "0" },
      el("h4", {}, el("button", { onclick: open }, el("span", { class: `verdict ${look}` }, word), " open")), el("p", { class: "about" }, `${row.length ?? row.tokens.length} tokens · ${mean}`),
      row.feedback ? el("p", { class: "said" }, row.feedback) : null, el("div", { class: "text" }, ...flow));
  }

  /* All attempts of the group of `row`; `open(index)` shows one. */
  function show(row, open) {
    const members = membersOf(row), chosen = attempts.signals.find((s) => s.key === sheet.signal);
    return [el("p", { class: "about" }, `${members.length} attempts at one problem in step ${row.step}, the best first`, chosen ? `; colour: ${attempts.nameOf(chosen)}, one scale for all` : "", "."),
      el("div", { class: "columns", tabindex: "0", role: "region", "aria-label": "The group side by side" }, ...members.map((i) => column(attempts.rows[i], () => open(i), chosen)))];
  }

  function membersOf(row) {
    return attempts.rows.map((_, i) => i).filter((i) => attempts.rows[i].group === row.group).sort((a, b) => (attempts.rows[b].reward ?? -1) - (attempts.rows[a].reward ?? -1));
  }

  errata.group = { show, membersOf };
})();
