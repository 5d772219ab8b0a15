"use strict";
/* One attempt: what was said about it, what its teacher was shown, then its tokens in colour, with a strip below and the chosen token's numbers. */
(() => {
  const { el, svg, number, attempts } = errata;
  const { has, at, valueOf, scaleOf, visible, quoted, verdictOf, correction, positionOf, SPECIAL } = attempts;
  const small = matchMedia("(max-width: 48rem)");

  let row = null, token = -1, spans = [], parts = [], high = [];
  let signal = attempts.signals[0]?.key, whole = false;
  const folded = new Set();
  let text = null;

  const about = el("p", { class: "about" }), scale = el("div", { class: "scale" });
  const strip = svg("svg", { class: "strip", "aria-hidden": "true", preserveAspectRatio: "none" });
  const ticks = el("div", { class: "ticks", "aria-hidden": "true" }), axis = el("div", { class: "axis", "aria-hidden": "true" }), under = el("div", { class: "under" }, axis, el("div", { class: "band" }, strip, ticks));
  const inspector = el("aside", { class: "inspector", "aria-label": "The chosen token", hidden: small.matches });
  const chooser = el("fieldset", { class: "chips", id: "signals" }), measure = el("fieldset", { class: "chips", id: "scale" }, el("legend", {}, "Scale of"));
  errata.chips(measure, "scale", [["one", "this attempt", "Colours end at this attempt's 98th percentile"], ["all", "all attempts", "Colours can be compared between attempts"]], "one",
    (value) => { whole = value === "all"; paint(signal); });
  const corrections = el("input", { type: "checkbox", id: "corrections", checked: true, onchange: () => text?.classList.toggle("corrected", corrections.checked) });
  const jumps = el("div", { class: "jumps" });

  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    choose(nearestOwn(Math.floor(((event.clientX - box.left) / box.width) * row.tokens.length), 1), true);
  });

  function chips() {
    chooser.replaceChildren(el("legend", {}, "Colour by"));
    errata.chips(chooser, "signal", attempts.signals.map((s) => [s.key, attempts.nameOf(s)]), signal, (key) => paint(key));
  }

  /* The parts of the sheet for one attempt, in the order in which they are read. */
  function show(next) {
    row = next;
    parts = attempts.partsOf(row);
    const known = attempts.signals.some((s) => has(s, row));
    text = words();
    if (!chooser.childElementCount) chips();
    for (const input of chooser.querySelectorAll("input")) input.disabled = !has(attempts.signals.find((s) => s.key === input.value), row);
    high = highest();
    const shown = [problem(), feedback(), context(), el("h3", {}, "The attempt", el("small", {}, ` ${row.length ?? ownTokens()} tokens`))].filter(Boolean);
    if (known) shown.push(el("div", { class: "controls" }, chooser, measure), about, el("div", { class: "work" }, scale, jumps, el("div", { class: "written" }, text, under), keys(), inspector));
    else shown.push(el("p", { class: "about" }, "Kept as text: no signals of its tokens were recorded."), text);
    if (known) jumpButtons();
    token = -1;
    return { parts: shown, ready: () => { if (known) { paint(signal); choose(high[0] ?? nearestOwn(0, 1), false); } } };
  }

  function ownTokens() {
    const left = row.gap ? row.gap[1] : 0;
    return row.tokens.length + left - row.notOwn.size;
  }

  // -- what comes before the attempt --------------------------------------------------------------------------------

  /* A part that can be folded away; it stays so for the next attempts. */
  function section(name, title, ...content) {
    const box = el("details", { class: `part ${name}`, open: !folded.has(name), ontoggle: () => folded[box.open ? "delete" : "add"](name) },
      el("summary", {}, ...[title].flat()), ...content);
    return box;
  }

  function message(role, ...said) {
    return el("p", { class: "said", tabindex: "0" }, role && role !== "user" ? el("span", { class: "role" }, role) : null, ...said);
  }

  function problem() {
    return section("problem", "The problem", ...row.prompt.map(([role, said]) => (role === "system"
      ? el("details", { class: "system" }, el("summary", {}, "system message"), message("", said)) : message(role, said))));
  }

  function feedback() {
    if (!row.feedback && !row.kind) return null;
    return section("feedback", `Feedback${row.kind ? `: ${row.kind}` : ""}`, el("p", { class: "said", tabindex: "0" }, row.feedback || "none, only the score"));
  }

  function context() {
    const shown = row.context;
    if (!shown.kind) return null;
    const flags = [shown.leaks_answer ? "contains the answer" : null, shown.cut?.length ? `shortened: ${shown.cut.join(", ")}` : null,
      shown.dropped ? "did not fit, so there was no teacher" : null].filter(Boolean);
    return section("context", "What the teacher was shown",
      el("p", {}, el("b", {}, shown.kind !== "none" ? shown.kind : "nothing"), shown.why ? `: ${shown.why}` : "", flags.length ? el("small", {}, ` (${flags.join("; ")})`) : null),
      ...(row.shown || []).map(([role, before, added, after]) => message(role, el("span", { class: "dim" }, before), el("mark", {}, added), el("span", { class: "dim" }, after))));
  }

  function keys() {
    const key = (name) => el("kbd", {}, name);
    return el("p", { class: "keys" }, "Anywhere: ", key("D"), " next token of high disagreement, ", key("Shift D"), " the one before, ", key("N"), " ", key("P"), " next and previous attempt, ", key("S"),
      " next signal, ", key("G"), " the group side by side. With a token in focus: ", key("←"), " ", key("→"), " tokens, ", key("↑"), " ", key("↓"), " lines, ", key("Home"), " ", key("End"), ".");
  }

  // -- the tokens ---------------------------------------------------------------------------------------------------

  function words() {
    spans = row.tokens.map((word, t) => (row.notOwn.has(t) ? null
      : el("span", { class: `token${SPECIAL.test(word) ? " special" : ""}`, tabindex: "-1", "data-t": t }, visible(word))));
    const bare = spans.length === 1 && !Object.keys(row.signals).length;
    const box = el("div", { class: `tokens${corrections.checked && row.alternatives ? " corrected" : ""}${!bare && row.tokens.length <= 80 ? " short" : ""}`, role: "group",
      "aria-label": "The attempt's tokens", onkeydown: onTokenKey }, ...(bare ? [visible(row.tokens[0]).replaceAll("↵\n", "\n")] : parts.map(turnOf)));
    if (bare) return box;
    box.addEventListener("mousemove", (event) => { if (pointer.moved) pick(event.target, false); });
    box.addEventListener("click", (event) => pick(event.target, true));
    box.addEventListener("focusin", (event) => pick(event.target, false));
    return box;
  }

  /* A turn of the policy in tokens, or what others said as plain text, never coloured; feedback on the turn stands below it. */
  function turnOf(part) {
    if (!part.own) {
      const said = row.tokens.slice(part.from, part.to).filter((word) => !SPECIAL.test(word)).join("");
      return el("div", { class: "turn given", title: "not the student's; nothing is learned from it" }, el("span", { class: "role" }, part.from_whom), el("p", { class: "output", tabindex: "0" }, visible(said).replaceAll("↵\n", "\n")), gap(part));
    }
    const calls = callsIn(part), inside = [];
    let call = null;
    for (let t = part.from; t < part.to; t++) {
      if (row.gap && row.gap[0] === t) inside.push(el("span", { class: "gap" }, `… ${number(row.gap[1])} tokens left out …`));
      const instead = correction(row, t), span = spans[t];
      const one = instead === null ? span : el("ruby", {}, span, el("rt", { "aria-hidden": "true" }, quoted(instead).slice(0, 14)));
      const starts = calls.find(([from]) => from === t);
      if (starts) inside.push(call = el("span", { class: "call" }));
      if (call && !calls.some(([from, to]) => from <= t && t < to)) call = null;
      if (call) call.append(one);
      else inside.push(one);
    }
    return el("div", { class: `turn own${part.title === "The answer" ? " answer" : ""}` }, part.title ? el("span", { class: "role" }, part.title) : null, el("div", { class: "flow" }, ...inside),
      part.feedback ? note("Feedback on this turn", part.feedback) : null, part.hindsight ? note("What the teacher was shown at this turn", part.hindsight) : null);
  }
  function note(title, said) {
    return el("details", { class: "note", open: true }, el("summary", {}, title), el("p", { class: "said", tabindex: "0" }, said));
  }
  function gap(part) {
    return row.gap && part.from < row.gap[0] && row.gap[0] < part.to ? el("span", { class: "gap" }, `… ${number(row.gap[1])} tokens left out …`) : null;
  }

  /* Token ranges of the tool calls in a turn, as the usual chat templates write them. */
  function callsIn(part) {
    const whole = row.tokens.slice(part.from, part.to), starts = [];
    let length = 0;
    for (const word of whole) { starts.push(length); length += word.length; }
    const said = whole.join("");
    return [...said.matchAll(/<(tool_call|function_call)>[^]*?(<\/\1>|$)/g)].map((found) => {
      const from = starts.findLastIndex((start) => start <= found.index), end = found.index + found[0].length;
      const to = starts.findIndex((start) => start >= end);
      return [part.from + from, to < 0 ? part.to : part.from + to];
    });
  }

  /* A page that scrolls under a pointer at rest reports a move as well; only the reader's own moves choose a token. */
  const pointer = { x: null, y: null, moved: false };
  document.addEventListener("mousemove", (event) => {
    pointer.moved = event.clientX !== pointer.x || event.clientY !== pointer.y;
    [pointer.x, pointer.y] = [event.clientX, event.clientY];
  }, true);

  // -- keys ---------------------------------------------------------------------------------------------------------

  function pick(target, focus) {
    const t = target.closest?.(".token")?.dataset.t;
    if (t === undefined) return;
    if (focus && small.matches) inspector.hidden = false;
    if (focus || Number(t) !== token) choose(Number(t), focus);
  }
  function nearestOwn(t, direction) {
    let there = Math.max(0, Math.min(spans.length - 1, t));
    while (spans[there] === null) there += direction;
    if (spans[there]) return there;
    there = Math.max(0, Math.min(spans.length - 1, t));
    while (spans[there] === null) there -= direction;
    return spans[there] ? there : -1;
  }
  function onTokenKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.closest(".token")) return;
    const jump = { ArrowLeft: () => nearestOwn(token - 1, -1), ArrowRight: () => nearestOwn(token + 1, 1), Home: () => nearestOwn(0, 1), End: () => nearestOwn(spans.length - 1, -1),
      ArrowUp: () => line(-1), ArrowDown: () => line(1) }[event.key];
    if (!jump) return;
    event.preventDefault();
    choose(jump(), true);
  }
  /* The token nearest to this one on the line above or below. */
  function line(direction) {
    const box = spans[token].getBoundingClientRect();
    let best = token, nearest = Infinity;
    for (let t = token + direction; t >= 0 && t < spans.length; t += direction) {
      if (!spans[t]) continue;
      const other = spans[t].getBoundingClientRect(), rows = Math.abs(other.top - box.top);
      if (rows < box.height / 2) continue;
      const away = rows * 50 + Math.abs(other.left - box.left);
      if (away < nearest) [best, nearest] = [t, away];
      else if (rows > 4 * box.height && nearest < Infinity) break;
    }
    return best;
  }
  function nextSignal() {
    const usable = attempts.signals.filter((s) => has(s, row));
    if (usable.length) paint(usable[(usable.findIndex((s) => s.key === signal) + 1) % usable.length].key);
  }

  /* The tokens of high disagreement, in order: those among the largest twentieth that are at least half as large as the largest of these but one in a hundred. */
  function highest() {
    const by = attempts.signals.find((s) => s.key === "disagreement" && has(s, row)) || attempts.signals.find((s) => s.key === signal && has(s, row));
    if (!by) return [];
    const sizes = row.tokens.map((_, t) => Math.abs(valueOf(by, row, t) ?? 0));
    const sorted = sizes.filter((size) => size > 0).sort((a, b) => b - a);
    if (!sorted.length) return [];
    const least = Math.max(sorted[Math.min(Math.floor(0.05 * sizes.length), sorted.length - 1)], sorted[Math.floor(0.01 * (sorted.length - 1))] / 2);
    return sizes.flatMap((size, t) => (size >= least && spans[t] ? [t] : []));
  }
  function jump(direction) {
    if (!high.length) return;
    const next = direction > 0 ? high.find((t) => t > token) ?? high[0] : high.findLast((t) => t < token) ?? high.at(-1);
    if (small.matches) inspector.hidden = false;
    choose(next, true);
  }
  function jumpButtons() {
    jumps.replaceChildren(...(high.length ? [el("button", { id: "jump-back", onclick: () => jump(-1), "aria-label": "Previous token of high disagreement" }, "↑"),
      el("button", { id: "jump", onclick: () => jump(1), "aria-label": "Next token of high disagreement" }, "↓"), el("span", {}, `${high.length} token${high.length > 1 ? "s" : ""} of high disagreement (`, el("kbd", {}, "D"), ")")] : []));
  }

  // -- colour -------------------------------------------------------------------------------------------------------

  /* Colour one element by a signal's value; used by the group as well. */
  function tint(span, chosen, value, top) {
    span.classList.remove("mark", "raise", "weight");
    span.style.removeProperty("--much");
    if (value === null || !top) return;
    const over = value - (chosen.base || 0);
    span.classList.add(chosen.look === "sign" ? (over > 0 ? "raise" : "mark") : chosen.look);
    span.style.setProperty("--much", Math.min(Math.abs(over) / top, 1).toFixed(3));
  }

  function paint(key) {
    const chosen = attempts.signals.find((s) => s.key === key) || attempts.signals[0];
    if (!chosen || !row) return;
    signal = chosen.key;
    for (const input of chooser.querySelectorAll("input")) input.checked = input.value === signal;
    const known = has(chosen, row), top = known ? scaleOf(chosen, whole ? null : row) : 0;
    spans.forEach((span, t) => { if (span) tint(span, chosen, known ? valueOf(chosen, row, t) : null, top); });
    about.textContent = known ? attempts.aboutOf(chosen, row)
      : `No “${attempts.nameOf(chosen, row)}” for this attempt: ${row.context.kind && row.context.kind !== "none" ? "its teacher did not score it" : "it had no teacher"}.`;
    legend(chosen, top);
    drawStrip(chosen, known, top);
    if (token >= 0) showToken();
    errata.remember?.();
  }

  function legend(chosen, top) {
    const names = chosen.look === "sign" ? ["--mark", "--raise"] : [`--${chosen.look}`];
    const full = (name) => `color-mix(in oklab, var(${name}) var(--tint), transparent)`;
    const ramp = el("i");
    ramp.style.background = `linear-gradient(to right, ${names.length === 2 ? `${full(names[0])}, transparent, ${full(names[1])}` : `transparent, ${full(names[0])}`})`;
    const base = chosen.base || 0, unit = chosen.unit ? ` ${chosen.unit}` : "";
    scale.replaceChildren(top ? el("span", {}, names.length === 2 ? `−${number(top)}` : number(base)) : "0 throughout", top ? ramp : "", top ? `${number(base + top)}${unit} and more` : "",
      row.alternatives ? el("label", { title: "Where the teacher gives another token more than half" }, corrections, " the teacher's token") : "");
  }

  /* Every token as a bar from 0 to the end of the colour scale; where tokens are narrower than a pixel, the largest of each pixel. */
  function drawStrip(chosen, known, top) {
    const n = row.tokens.length, base = chosen.base || 0, bins = Math.min(n, 700);
    const values = row.tokens.map((_, t) => (known ? (valueOf(chosen, row, t) ?? base) - base : 0));
    const signed = chosen.look === "sign" && values.some((v) => v < 0), zero = signed ? 50 : 100, height = signed ? 50 : 100;
    const bars = (sign) => {
      let path = "";
      for (let i = 0; i < bins; i++) {
        const from = Math.floor((i * n) / bins), to = Math.max(Math.floor(((i + 1) * n) / bins), from + 1);
        const size = Math.max(0, ...values.slice(from, to).map((v) => sign * v));
        if (size > 0 && top) path += `M${from} ${zero}h${to - from}v${-sign * height * Math.min(size / top, 1)}h${from - to}z`;
      }
      return path;
    };
    const up = chosen.look === "sign" ? "raise" : chosen.look;
    const given = parts.filter((part) => !part.own).map((part) => svg("rect", { class: "given", x: part.from, y: 0, width: part.to - part.from, height: 100 }));
    strip.setAttribute("viewBox", `0 0 ${n} 100`);
    strip.replaceChildren(...given, svg("path", { class: up, d: bars(1) }), svg("path", { class: "mark", d: bars(-1) }),
      svg("path", { class: "zero", d: `M0 ${zero}H${n}`, "vector-effect": "non-scaling-stroke" }), svg("rect", { class: "at", y: 0, height: 100, width: Math.max(1, n / 250) }));
    axis.replaceChildren(...(top ? [number(base + top), ...(signed ? [number(base), `−${number(top)}`] : [number(base)])] : []).map((word) => el("span", {}, word)));
    const each = [10, 20, 50, 100, 200, 500, 1000].find((step) => n / step <= 8) || 2000, marks = [];
    for (let t = 0; t < n; t += each) {
      const mark = el("span", {}, t === 0 ? "token 1" : String(positionOf(row, t)));
      mark.style.left = `${(100 * t) / n}%`;
      marks.push(mark);
    }
    ticks.replaceChildren(...marks);
    strip.querySelector(".at").setAttribute("x", Math.max(token, 0));
  }

  // -- one token ----------------------------------------------------------------------------------------------------

  function choose(t, focus) {
    if (!spans[t]) return;
    spans[token]?.classList.remove("chosen");
    spans[token]?.setAttribute("tabindex", "-1");
    token = t;
    spans[token].classList.add("chosen");
    spans[token].setAttribute("tabindex", "0");
    if (focus) spans[token].focus({ preventScroll: true });
    if (focus) intoView(spans[token]);
    strip.querySelector(".at")?.setAttribute("x", token);
    showToken();
  }
  /* Clear of the strip and, on a phone, of the panel: both stick to the window's edge. */
  function intoView(span) {
    const box = span.getBoundingClientRect(), bottom = innerHeight - under.offsetHeight - (small.matches && !inspector.hidden ? inspector.offsetHeight : 0) - 16;
    if (box.top < 16 || box.bottom > bottom) scrollBy({ top: box.top - bottom / 2, behavior: "instant" });
  }

  function showToken() {
    const word = row.tokens[token];
    if (word === undefined) return;
    const p = (logp) => (logp === null || logp === undefined ? "–" : percent(Math.exp(logp)));
    const numbers = attempts.signals.filter((s) => has(s, row)).map((s) =>
      el("tr", { class: s.key === signal ? "now" : null }, el("th", { scope: "row" }, attempts.nameOf(s, row)), el("td", {}, number(valueOf(s, row, token)))));
    const likely = [el("tr", {}, el("th", { scope: "row" }, "student gave it"), el("td", {}, p(at(row.signals.student_logp, token))))];
    if (row.signals.teacher_logp !== undefined) likely.push(el("tr", {}, el("th", { scope: "row" }, "teacher gives it"), el("td", {}, p(at(row.signals.teacher_logp, token)))));
    inspector.replaceChildren(
      el("h3", {}, el("code", {}, quoted(word)), el("small", {}, ` token ${positionOf(row, token) + 1}`), el("button", { class: "close", "aria-label": "Close this panel", onclick: () => { inspector.hidden = true; spans[token]?.focus({ preventScroll: true }); } }, "×")),
      el("div", {}, el("table", {}, el("tbody", {}, ...likely)), ...alternatives(word)), el("table", {}, el("tbody", {}, ...numbers)));
    const chosen = attempts.signals.find((s) => s.key === signal);
    spans[token].setAttribute("aria-label", `${quoted(word)}, ${attempts.nameOf(chosen, row)} ${number(has(chosen, row) ? valueOf(chosen, row, token) : null)}`);
  }

  function percent(share) {
    return share >= 0.001 ? `${(100 * share).toFixed(1)} %` : share > 0 ? "< 0.1 %" : "0 %";
  }

  function alternatives(word) {
    const kept = row.alternatives?.[token], logp = at(row.signals.teacher_logp ?? null, token);
    if (kept === undefined) return [];
    const said = logp === null || logp === undefined ? [] : [[word, Math.exp(logp)]];
    const all = !kept ? said : kept.some(([other]) => other === word) ? kept : [...kept, ...said];
    return [el("h4", {}, "The teacher's most likely tokens"), el("ol", { class: "choices" }, ...all.map(([other, share]) => {
      const fill = el("i");
      fill.style.width = `${100 * Math.min(share, 1)}%`;
      return el("li", { class: other === word ? "said-it" : null, title: other === word ? "what the student said" : null }, el("code", {}, quoted(other)), el("div", { class: "bar" }, fill), el("span", {}, percent(share)));
    }))];
  }

  small.addEventListener("change", () => { inspector.hidden = small.matches; });
  errata.sheet = { show, paint, adopt: (same) => { row = same; }, jump, nextSignal, tint, message, chips, get signal() { return signal; }, set signal(key) { signal = key; }, get whole() { return whole; } };
})();
