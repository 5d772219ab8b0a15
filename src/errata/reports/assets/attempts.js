"use strict";
/* The rollouts: each one's tokens coloured by a signal, with the teacher's context and the teacher's own next tokens. */
(() => {
  const { el, number, data } = errata;
  const place = document.getElementById("attempts");
  const rows = data.attempts;

  const DIVERGENCE = {
    forward_ce: "forward KL from teacher to student (the cross-entropy less the teacher's own entropy)",
    forward_kl: "forward KL from teacher to student",
    reverse_kl: "reverse KL from student to teacher",
    js: "Jensen–Shannon divergence",
  };

  /* How to read each signal from a row, and its explanation. `look` is the colour scale: mark (disagreement), weight, or sign (above or below 0). */
  const SIGNALS = [
    { key: "disagreement", name: "disagreement", look: "mark", of: disagreement, needs: ["divergence"],
      about: (row) => `How far the student's next-token distribution is from the teacher's, in nats: ${DIVERGENCE[kindOf(row)] || "the method's divergence"}. 0: they agree.` },
    { key: "gap", name: "gap to the teacher", look: "sign", of: (s, t) => less(at(s.teacher_logp, t), at(s.student_logp, t)), needs: ["teacher_logp", "student_logp"],
      about: "Teacher's less student's log-probability of this token. Below 0 (orange) the teacher finds it less likely than the student did; above 0 (blue) more likely." },
    { key: "future_credit", name: "future credit", look: "mark",
      about: "The future cost: the disagreement after this token. It is high for a token that leads to disagreement later, even if the teacher agrees with the token itself." },
    { key: "advantage", name: "advantage", look: "sign",
      about: "The factor of this token's log-prob gradient in the policy-gradient stream. Blue: the token becomes more likely. Orange: less likely." },
    { key: "rl_weight", name: "policy-gradient weight", look: "weight", about: "This token's weight in the policy-gradient stream. 0: not part of it." },
    { key: "sd_weight", name: "distillation weight", look: "weight", about: "This token's weight in the distillation stream. 0: not part of it." },
    { key: "rhythm", name: "rhythm", look: "weight", base: 1, about: "The factor M_t of a solved rollout's token. Above 1: the student is surer of the token than the teacher, where the gate is above 0." },
    { key: "rhythm_gate", name: "rhythm gate", look: "weight", about: "The gate of this token, from 0 to 1. It is above 0 where the teacher's entropy has just fallen and the student's has not." },
    { key: "surprise", name: "student's surprise", look: "mark", of: (s, t) => less(0, at(s.student_logp, t)), needs: ["student_logp"],
      about: "Minus the student's log-probability of the token it sampled, in nats." },
    { key: "student_entropy", name: "student's entropy", look: "mark", about: "Entropy of the student's next-token distribution before this token, in nats." },
    { key: "teacher_entropy", name: "teacher's entropy", look: "mark", about: "Entropy of the teacher's next-token distribution before this token, in nats." },
  ];
  const READ = new Set(["student_logp", "teacher_logp", "divergence", ...SIGNALS.map((s) => s.key)]);
  for (const key of new Set(rows.flatMap((row) => Object.keys(row.signals)))) {
    if (!READ.has(key)) SIGNALS.push({ key, name: key.replaceAll("_", " "), look: "sign", about: "Recorded by the method." });
  }

  const RATE = "The ledger's smoothed pass rate of the problem; for a method without a ledger, the share of its group that was solved.";
  const SPECIAL = /^<[|｜].*[|｜]>$|^<\/?s>$/;

  function at(values, t) {
    return Array.isArray(values) ? values[t] : values;
  }
  function less(a, b) {
    return a === null || b === null || a === undefined || b === undefined ? null : a - b;
  }
  function kindOf(row) {
    return data.runs[row.run].divergence;
  }
  function disagreement(s, t, row) {
    const value = at(s.divergence, t);
    if (kindOf(row) !== "forward_ce" || s.teacher_entropy === undefined || value === null) return value;
    return Math.max(less(value, at(s.teacher_entropy, t)), 0);
  }
  function has(signal, row) {
    return (signal.needs || [signal.key]).every((key) => row.signals[key] !== undefined);
  }
  function valueOf(signal, row, t) {
    const value = signal.of ? signal.of(row.signals, t, row) : at(row.signals[signal.key], t);
    return value === undefined ? null : value;
  }
  /* One scale for all rollouts, so that colours can be compared between them: the 98th percentile. */
  function scaleOf(signal) {
    if (signal.scale === undefined) {
      const sizes = [];
      for (const row of rows) {
        if (has(signal, row)) for (let t = 0; t < row.tokens.length; t++) sizes.push(Math.abs((valueOf(signal, row, t) ?? 0) - (signal.base || 0)));
      }
      sizes.sort((a, b) => a - b);
      const top = sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 0;
      signal.scale = top;
    }
    return signal.scale;
  }

  /* Control characters as they would be typed; a line break also breaks the line. */
  function visible(token) {
    if (token === "") return "·";
    return token.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`)
      .replace(/\n/g, "↵\n").replace(/\t/g, "→\t");
  }
  function quoted(token) {
    return visible(token).replace(/\n|\t/g, "") || "·";
  }
  function verdictOf(row) {
    if (row.reward === null || row.reward === undefined) return ["unjudged", "not judged"];
    const word = row.solved ? "right" : "wrong";
    return [word, row.reward === 0 || row.reward === 1 ? word : `reward ${number(row.reward)}`];
  }
  function difficultyOf(row) {
    if (row.rate === null || row.rate === undefined) return "unknown";
    return row.rate < 0.3 ? "hard" : row.rate > 0.7 ? "easy" : "medium";
  }
  /* The teacher's token, if it gives another token more than half of the probability. */
  function correction(row, t) {
    const best = row.alternatives?.[t]?.[0];
    return best && best[1] > 0.5 && best[0] !== row.tokens[t] ? best[0] : null;
  }

  if (!rows.length) {
    place.append(el("p", { class: "empty" }, data.recorded ? "No recorded rollout fits on this page." : "No rollout was recorded (rollouts_saved)."));
    return;
  }

  // -- filters ------------------------------------------------------------------------------------------------------

  const FILTERS = [
    ["run", "run", (row) => data.runs[row.run].name],
    ["verdict", "verdict", (row) => verdictOf(row)[0]],
    ["kind", "feedback", (row) => row.kind || "none"],
    ["shown", "teacher was shown", (row) => row.context.kind || "nothing"],
    ["difficulty", "difficulty", difficultyOf],
  ];
  const wanted = {};
  const bar = el("div", { class: "filters" });
  for (const [key, name, of] of FILTERS) {
    const counts = new Map();
    for (const row of rows) counts.set(of(row), (counts.get(of(row)) || 0) + 1);
    if (counts.size < 2) continue;
    const select = el("select", { id: `filter-${key}`, onchange: () => { wanted[key] = select.value; filter(); } }, el("option", { value: "" }, "all"),
      ...[...counts].sort().map(([value, count]) => el("option", { value }, `${value} (${count})`)));
    const title = key === "difficulty" ? `Hard: pass rate below 0.3; easy: above 0.7. ${RATE}` : null;
    bar.append(el("label", { title }, name, select));
  }
  const steps = rows.map((row) => row.step);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const [from, to] = [["from", first], ["to", last]].map(([name, value]) =>
    el("input", { type: "number", id: `filter-${name}`, min: first, max: last, value, "aria-label": `${name} step`, onchange: () => filter() }));
  const search = el("input", { type: "search", id: "filter-text", placeholder: "in prompt or attempt", oninput: () => filter() });
  const count = el("output", { "aria-live": "polite" });
  bar.append(el("label", {}, "steps", el("span", { class: "steps" }, from, "–", to)), el("label", {}, "text", search));

  const texts = rows.map((row) => (row.prompt.map((part) => part[1]).join("\n") + "\n" + row.tokens.join("")).toLowerCase());
  let found = [];
  function filter() {
    const [low, high] = [from, to].map((input, i) => (input.value === "" ? [first, last][i] : Number(input.value)));
    const needle = search.value.toLowerCase();
    found = rows.map((_, i) => i).filter((i) => {
      const row = rows[i];
      return row.step >= low && row.step <= high && (!needle || texts[i].includes(needle))
        && FILTERS.every(([key, , of]) => !wanted[key] || of(row) === wanted[key]);
    });
    const left = data.recorded > rows.length ? `; ${data.recorded - rows.length} more recorded` : "";
    count.textContent = `${found.length} of ${rows.length} attempts${left}`;
    list();
    if (!found.includes(current) && found.length) open(found[0]);
  }

  // -- the list -----------------------------------------------------------------------------------------------------

  const items = el("ol", { role: "listbox", "aria-label": "Attempts", onkeydown: onListKey });
  const nodes = new Map();
  function list() {
    nodes.clear();
    items.replaceChildren(...found.map((i) => {
      const row = rows[i], [look, word] = verdictOf(row);
      const item = el("li", { role: "option", tabindex: i === current ? "0" : "-1", "aria-selected": String(i === current), onclick: () => open(i) },
        el("span", { class: `verdict ${look}` }, word), ` · step ${row.step}`,
        data.runs.length > 1 ? ` · ${data.runs[row.run].name}` : "", el("code", {}, quoted(row.tokens.slice(0, 60).filter((word) => !SPECIAL.test(word)).join(""))));
      nodes.set(i, item);
      return item;
    }));
    if (!found.length) items.append(el("li", {}, "None; widen the filters."));
    else if (!found.includes(current)) items.firstChild.tabIndex = 0;
  }
  function onListKey(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    turn(move);
    nodes.get(current)?.focus();
  }
  function turn(move) {
    const here = found.indexOf(current);
    const next = found[Math.max(0, Math.min(found.length - 1, here + move))];
    if (next !== undefined) open(next);
  }

  // -- one attempt --------------------------------------------------------------------------------------------------

  let current = -1, token = 0, spans = [];
  let signal = SIGNALS.find((s) => rows.some((row) => has(s, row)))?.key;
  const sheet = el("div", { class: "sheet" });
  const inspector = el("aside", { class: "inspector", "aria-label": "The chosen token" });
  const about = el("p", { class: "about" }), scale = el("div", { class: "scale" });
  const chooser = errata.chips(el("fieldset", { class: "chips", id: "signals" }, el("legend", {}, "Colour by")), "signal",
    SIGNALS.filter((s) => rows.some((row) => has(s, row))).map((s) => [s.key, s.name]), null, (key) => paint(key));
  const corrections = el("input", { type: "checkbox", id: "corrections", checked: true, onchange: () => text.classList.toggle("corrected", corrections.checked) });
  const anyCorrections = rows.some((row) => row.alternatives);
  let text = null, strip = null;

  function open(index) {
    nodes.get(current)?.setAttribute("aria-selected", "false");
    nodes.get(current)?.setAttribute("tabindex", "-1");
    current = index;
    const row = rows[index], item = nodes.get(index), [look, word] = verdictOf(row);
    item?.setAttribute("aria-selected", "true");
    item?.setAttribute("tabindex", "0");
    if (item) reveal(item);
    const place = found.indexOf(index);
    text = words(row);
    strip = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    strip.setAttribute("class", "strip");
    strip.setAttribute("aria-hidden", "true");
    strip.setAttribute("preserveAspectRatio", "none");
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      choose(Math.floor(((event.clientX - box.left) / box.width) * row.tokens.length), true);
    });
    sheet.replaceChildren(...[
      el("div", { class: "headline" }, el("span", { class: `verdict ${look}` }, word), el("span", {}, `step ${row.step}`),
        row.rate === null || row.rate === undefined ? null : el("span", { title: RATE }, `pass rate ${number(row.rate)} (${difficultyOf(row)})`),
        el("span", { class: "id" }, row.problem, data.runs.length > 1 ? ` · ${data.runs[row.run].name}` : ""),
        el("span", { class: "turn" }, el("button", { onclick: () => turn(-1), disabled: place <= 0, "aria-label": "Previous attempt" }, "←"), " ",
          el("button", { onclick: () => turn(1), disabled: place >= found.length - 1, "aria-label": "Next attempt" }, "→"))),
      others(row, index),
      el("h3", {}, "The problem"), ...row.prompt.map(([role, said]) => (role === "system"
        ? el("details", { class: "system" }, el("summary", {}, "system message"), message("", said)) : message(role, said))),
      el("h3", {}, "The attempt"), chooser, about, el("div", { class: "work" }, scale, strip, text, keys(), inspector),
      ...feedback(row), ...shown(row)].filter(Boolean));
    for (const input of chooser.querySelectorAll("input")) input.disabled = !has(SIGNALS.find((s) => s.key === input.value), row);
    paint(signal);
    const worst = row.tokens.findIndex((_, t) => correction(row, t) !== null);
    choose(worst < 0 ? 0 : worst, false);
  }

  /* Scroll the list, never the page. */
  function reveal(item) {
    const frame = items.parentElement, box = frame.getBoundingClientRect(), place = item.getBoundingClientRect();
    if (place.top < box.top || place.bottom > box.bottom) frame.scrollTop += place.top - box.top - box.height / 3;
  }

  function message(role, ...said) {
    return el("p", { class: "said", tabindex: "0" }, role && role !== "user" ? el("span", { class: "role" }, role) : null, ...said);
  }

  function others(row, index) {
    const same = rows.map((_, i) => i).filter((i) => i !== index && rows[i].problem === row.problem && rows[i].run === row.run).slice(0, 24);
    if (!same.length || !row.problem) return null;
    return el("div", { class: "others" }, el("small", {}, "same problem:"), ...same.map((i) =>
      el("button", { onclick: () => open(i) }, el("span", { class: `verdict ${verdictOf(rows[i])[0]}` }, verdictOf(rows[i])[1]), ` step ${rows[i].step}`)));
  }

  function keys() {
    return el("p", { class: "keys" }, "With a token in focus: ", el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " tokens, ", el("kbd", {}, "↑"), " ", el("kbd", {}, "↓"),
      " lines, ", el("kbd", {}, "N"), " ", el("kbd", {}, "P"), " next and previous attempt, ", el("kbd", {}, "S"), " next signal.");
  }

  function feedback(row) {
    if (!row.feedback && !row.kind) return [];
    return [el("h3", {}, `Feedback${row.kind ? `: ${row.kind}` : ""}`), el("p", { class: "said", tabindex: "0" }, row.feedback || "none, only the score")];
  }

  function shown(row) {
    const context = row.context, parts = [el("h3", {}, "What the teacher was shown")];
    const flags = [context.leaks_answer ? "contains the answer" : null, context.cut?.length ? `shortened: ${context.cut.join(", ")}` : null,
      context.dropped ? "did not fit, so there was no teacher" : null].filter(Boolean);
    parts.push(el("p", {}, el("b", {}, context.kind && context.kind !== "none" ? context.kind : "nothing"), context.why ? `: ${context.why}` : "",
      flags.length ? el("small", {}, ` (${flags.join("; ")})`) : null));
    for (const [role, before, added, after] of row.shown || []) {
      parts.push(message(role, el("span", { class: "dim" }, before), el("mark", {}, added), el("span", { class: "dim" }, after)));
    }
    return parts;
  }

  function words(row) {
    const given = new Set(row.given || []);
    spans = row.tokens.map((word, t) => {
      const special = SPECIAL.test(word);
      return el("span", { class: `token${given.has(t) ? " given" : ""}${special ? " special" : ""}`, tabindex: "-1", "data-t": t, title: given.has(t) ? "not the student's" : null }, visible(word));
    });
    const parts = spans.flatMap((span, t) => {
      const instead = correction(row, t);
      const part = instead === null ? span : el("ruby", {}, span, el("rt", { "aria-hidden": "true" }, quoted(instead).slice(0, 14)));
      if (row.gap && row.gap[0] === t) return [el("span", { class: "gap" }, `… ${number(row.gap[1])} tokens left out …`), part];
      return [part];
    });
    const box = el("div", { class: `tokens${corrections.checked && anyCorrections ? " corrected" : ""}${row.tokens.length <= 80 ? " short" : ""}`, role: "group", "aria-label": "The attempt's tokens", onkeydown: onTokenKey }, ...parts);
    box.addEventListener("mouseover", (event) => pick(event.target, false));
    box.addEventListener("click", (event) => pick(event.target, true));
    box.addEventListener("focusin", (event) => pick(event.target, false));
    return box;
  }
  function pick(target, focus) {
    const t = target.closest?.(".token")?.dataset.t;
    if (t !== undefined && (focus || Number(t) !== token)) choose(Number(t), focus);
  }

  function onTokenKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const jump = { ArrowLeft: () => token - 1, ArrowRight: () => token + 1, Home: () => 0, End: () => spans.length - 1,
      ArrowUp: () => line(-1), ArrowDown: () => line(1) }[event.key];
    const other = { n: () => turn(1), p: () => turn(-1), s: nextSignal }[event.key.toLowerCase()];
    if (!jump && !other) return;
    event.preventDefault();
    if (other) other();
    choose(jump ? jump() : token, true);
  }
  /* The token nearest to this one on the line above or below. */
  function line(direction) {
    const box = spans[token].getBoundingClientRect();
    let best = token, nearest = Infinity;
    for (let t = token + direction; t >= 0 && t < spans.length; t += direction) {
      const other = spans[t].getBoundingClientRect(), rows = Math.abs(other.top - box.top);
      if (rows < box.height / 2) continue;
      const away = rows * 50 + Math.abs(other.left - box.left);
      if (away < nearest) [best, nearest] = [t, away];
      else if (rows > 4 * box.height) break;
    }
    return best;
  }
  function nextSignal() {
    const usable = SIGNALS.filter((s) => has(s, rows[current]));
    paint(usable[(usable.findIndex((s) => s.key === signal) + 1) % usable.length].key);
  }

  // -- colour -------------------------------------------------------------------------------------------------------

  function paint(key) {
    const row = rows[current];
    const chosen = SIGNALS.find((s) => s.key === key) || SIGNALS[0];
    signal = chosen.key;
    for (const input of chooser.querySelectorAll("input")) input.checked = input.value === signal;
    const top = scaleOf(chosen), known = has(chosen, row);
    spans.forEach((span, t) => {
      span.classList.remove("mark", "raise", "weight");
      span.style.removeProperty("--much");
      const value = known ? valueOf(chosen, row, t) : null;
      if (value === null || !top) return;
      const over = value - (chosen.base || 0);
      span.classList.add(chosen.look === "sign" ? (over > 0 ? "raise" : "mark") : chosen.look);
      span.style.setProperty("--much", `${Math.round(78 * Math.min(Math.abs(over) / top, 1))}%`);
    });
    about.textContent = known ? (typeof chosen.about === "function" ? chosen.about(row) : chosen.about)
      : `No “${chosen.name}” for this attempt: ${row.context.kind && row.context.kind !== "none" ? "its teacher did not score it" : "it had no teacher"}.`;
    legend(chosen, top);
    drawStrip(chosen, row, known);
    showToken();
    remember();
  }

  function legend(chosen, top) {
    const names = chosen.look === "sign" ? ["--mark", "--raise"] : [`--${chosen.look}`];
    const stops = names.length === 2 ? `color-mix(in oklab, var(${names[0]}) 78%, transparent), transparent, color-mix(in oklab, var(${names[1]}) 78%, transparent)`
      : `transparent, color-mix(in oklab, var(${names[0]}) 78%, transparent)`;
    const ramp = el("i");
    ramp.style.background = `linear-gradient(to right, ${stops})`;
    const base = chosen.base || 0;
    scale.replaceChildren(top ? el("span", {}, names.length === 2 ? `−${number(top)}` : number(base)) : "0 in every attempt", top ? ramp : "", top ? `${number(base + top)} and more` : "",
      anyCorrections ? el("label", { title: "Where the teacher gives another token more than half" }, corrections, " the teacher's token") : "");
  }

  function drawStrip(chosen, row, known) {
    const n = row.tokens.length;
    const values = row.tokens.map((_, t) => (known ? (valueOf(chosen, row, t) ?? 0) - (chosen.base || 0) : 0));
    const high = Math.max(...values, 0), low = Math.min(...values, 0), span = high - low || 1;
    const zero = 100 * (high / span), shapes = [["path", { class: "zero", d: `M0 ${zero}H${n}`, "vector-effect": "non-scaling-stroke" }]];
    const path = (keep) => values.map((v, t) => (keep(v) ? `M${t + 0.08} ${zero}h.84v${(-100 * v) / span}h-.84z` : "")).join("");
    const up = chosen.look === "sign" ? "raise" : chosen.look;
    shapes.push(["rect", { class: "at", y: 0, height: 100, width: 1 }], ["path", { class: up, d: path((v) => v > 0) }], ["path", { class: "mark", d: path((v) => v < 0) }]);
    strip.setAttribute("viewBox", `0 0 ${n} 100`);
    strip.replaceChildren(...shapes.map(([tag, attributes]) => {
      const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      return shape;
    }));
    strip.querySelector(".at").setAttribute("x", token);
  }

  // -- one token ----------------------------------------------------------------------------------------------------

  function choose(t, focus) {
    spans[token]?.classList.remove("chosen");
    spans[token]?.setAttribute("tabindex", "-1");
    token = Math.max(0, Math.min(spans.length - 1, t));
    spans[token].classList.add("chosen");
    spans[token].setAttribute("tabindex", "0");
    if (focus) spans[token].focus({ preventScroll: false });
    strip.querySelector(".at")?.setAttribute("x", token);
    showToken();
  }

  function showToken() {
    const row = rows[current], word = row.tokens[token];
    if (word === undefined) return;
    const position = row.gap && token >= row.gap[0] ? token + row.gap[1] : token;
    const p = (logp) => (logp === null || logp === undefined ? "–" : percent(Math.exp(logp)));
    const given = row.given?.includes(token);
    const numbers = SIGNALS.filter((s) => has(s, row)).map((s) =>
      el("tr", { class: s.key === signal ? "now" : null }, el("th", { scope: "row" }, s.name), el("td", {}, number(valueOf(s, row, token)))));
    const likely = [el("tr", {}, el("th", { scope: "row" }, "student gave it"), el("td", {}, p(at(row.signals.student_logp, token))))];
    if (row.signals.teacher_logp !== undefined) likely.push(el("tr", {}, el("th", { scope: "row" }, "teacher gives it"), el("td", {}, p(at(row.signals.teacher_logp, token)))));
    inspector.replaceChildren(
      el("h3", {}, el("code", {}, quoted(word)), el("small", {}, ` token ${position + 1}${given ? ", not the student's" : ""}`)),
      el("div", {}, el("table", {}, el("tbody", {}, ...likely)), ...alternatives(row, word)), el("table", {}, el("tbody", {}, ...numbers)));
    spans[token].setAttribute("aria-label", `${quoted(word)}, ${SIGNALS.find((s) => s.key === signal).name} ${number(valueOf(SIGNALS.find((s) => s.key === signal), row, token))}`);
  }

  function percent(share) {
    return share >= 0.001 ? `${(100 * share).toFixed(1)} %` : share > 0 ? "< 0.1 %" : "0 %";
  }

  function alternatives(row, word) {
    const choices = row.alternatives?.[token];
    if (!choices) return [];
    const all = choices.some(([other]) => other === word) || row.signals.teacher_logp === undefined ? choices : [...choices, [word, Math.exp(at(row.signals.teacher_logp, token))]];
    return [el("h4", {}, "The teacher's most likely tokens"), el("ol", { class: "choices" }, ...all.map(([other, share]) => {
      const fill = el("i");
      fill.style.width = `${100 * Math.min(share, 1)}%`;
      return el("li", { class: other === word ? "said-it" : null, title: other === word ? "what the student said" : null }, el("code", {}, quoted(other)), el("div", { class: "bar" }, fill), el("span", {}, percent(share)));
    }))];
  }

  // -- the address holds what is open ---------------------------------------------------------------------------

  function remember() {
    history.replaceState(null, "", `#attempt=${current}&signal=${signal}`);
  }

  place.append(el("details", { class: "sift", open: !matchMedia("(max-width: 48rem)").matches }, el("summary", {}, "Filter ", count), bar), el("div", { class: "reader" }, el("div", { class: "list" }, items), sheet));
  const address = new URLSearchParams(location.hash.slice(1)), anchor = location.hash.includes("attempt=");
  const original = location.hash;
  signal = SIGNALS.find((s) => s.key === address.get("signal"))?.key || signal;
  const example = rows.findIndex((row) => verdictOf(row)[0] === "wrong" && row.tokens.some((_, t) => correction(row, t) !== null));
  current = anchor && rows[Number(address.get("attempt"))] ? Number(address.get("attempt")) : Math.max(example, 0);
  filter();
  open(current);
  if (anchor) document.getElementById("rollouts").scrollIntoView();
  else history.replaceState(null, "", original || location.pathname + location.search);
})();
