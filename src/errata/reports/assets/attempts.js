"use strict";
/* The list of attempts with its filters and its order, the open attempt or its group, and what the keys do. */
(() => {
  const { el, number, attempts, sheet } = errata;
  const { quoted, verdictOf, difficultyOf, RATE, SPECIAL } = attempts;
  const place = document.getElementById("attempts");
  let rows = attempts.rows, current = -1, together = false, found = [], texts = [];

  // -- filters and order --------------------------------------------------------------------------------------------

  const FILTERS = [
    ["run", "run", (row) => errata.data.runs[row.run].name],
    ["split", "from", (row) => row.split],
    ["verdict", "verdict", (row) => verdictOf(row)[0]],
    ["kind", "feedback", (row) => row.kind || "none"],
    ["shown", "teacher was shown", (row) => row.context.kind || "nothing"],
    ["difficulty", "difficulty", difficultyOf],
  ];
  const wanted = {};
  const bar = el("div", { class: "filters" }), count = el("output", { "aria-live": "polite" });
  const search = el("input", { type: "search", id: "filter-text", placeholder: "in prompt or attempt", oninput: () => filter() });
  const from = el("input", { type: "number", id: "filter-from", "aria-label": "from step", onchange: () => filter() });
  const to = el("input", { type: "number", id: "filter-to", "aria-label": "to step", onchange: () => filter() });
  const order = el("select", { id: "order", onchange: () => filter() }), reversed = el("button", { id: "reversed", "aria-pressed": "false", title: "Reverse the order", onclick: () => {
    reversed.setAttribute("aria-pressed", String(reversed.getAttribute("aria-pressed") !== "true"));
    filter();
  } }, "⇅");

  function controls() {
    bar.replaceChildren();
    for (const [key, name, of] of FILTERS) {
      const counts = new Map();
      for (const row of rows) counts.set(of(row), (counts.get(of(row)) || 0) + 1);
      if (counts.size < 2) continue;
      const select = el("select", { id: `filter-${key}`, onchange: () => { wanted[key] = select.value; filter(); } }, el("option", { value: "" }, "all"),
        ...[...counts].sort().map(([value, n]) => el("option", { value, selected: wanted[key] === value }, `${value} (${n})`)));
      bar.append(el("label", { title: key === "difficulty" ? `Hard: pass rate below 0.3; easy: above 0.7. ${RATE}` : null }, name, select));
    }
    const steps = rows.map((row) => row.step), chosen = order.value;
    for (const [input, value] of [[from, Math.min(...steps)], [to, Math.max(...steps)]]) input.placeholder = value;
    order.replaceChildren(...ORDERS().map(([value, name]) => el("option", { value, selected: value === chosen }, name)));
    bar.append(el("label", {}, "steps", el("span", { class: "steps" }, from, "–", to)), el("label", {}, "sorted by", el("span", { class: "steps" }, order, reversed)), el("label", {}, "text", search));
    texts = rows.map((row) => (row.prompt.map((part) => part[1]).join("\n") + "\n" + row.tokens.join("")).toLowerCase());
  }

  /* Step and place, then reward and length, then every signal by its mean and by its largest token; largest first. */
  function ORDERS() {
    return [["step", "step"], ["reward", "reward"], ["length", "length"],
      ...attempts.signals.flatMap((s) => [[`mean ${s.key}`, `${attempts.nameOf(s)}, mean`], [`top ${s.key}`, `${attempts.nameOf(s)}, largest token`]])];
  }
  const measured = new Map();
  function measure(i) {
    const [what, key] = order.value.split(" "), row = rows[i];
    if (what === "reward") return row.reward ?? null;
    if (what === "length") return row.length ?? row.tokens.length - row.notOwn.size + (row.gap?.[1] || 0);
    if (key === undefined) return null;
    const name = `${order.value} ${i}`;
    if (!measured.has(name)) {
      const values = attempts.valuesOf(attempts.signals.find((s) => s.key === key), row).filter((v) => v !== null);
      measured.set(name, !values.length ? null : what === "mean" ? values.reduce((a, b) => a + b, 0) / values.length : values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)));
    }
    return measured.get(name);
  }

  function filter() {
    const low = from.value === "" ? -Infinity : Number(from.value), high = to.value === "" ? Infinity : Number(to.value), needle = search.value.toLowerCase();
    found = rows.map((_, i) => i).filter((i) => {
      const row = rows[i];
      return row.step >= low && row.step <= high && (!needle || texts[i].includes(needle)) && FILTERS.every(([key, , of]) => !wanted[key] || of(row) === wanted[key]);
    });
    if (order.value && order.value !== "step") found.sort((a, b) => (measure(b) ?? -Infinity) - (measure(a) ?? -Infinity) || a - b);
    if (reversed.getAttribute("aria-pressed") === "true") found.reverse();
    const more = errata.data.recorded - errata.data.attempts.filter((row) => (row.split || "training") === "training").length;
    count.textContent = `${found.length} of ${rows.length} attempts${more > 0 ? `; ${more} more recorded` : ""}`;
    list();
    if (!found.includes(current) && found.length) open(found[0]);
  }

  // -- the list -----------------------------------------------------------------------------------------------------

  const items = el("ol", { role: "listbox", "aria-label": "Attempts", onkeydown: onListKey }), nodes = new Map();
  function list() {
    nodes.clear();
    items.replaceChildren(...found.map((i) => {
      const row = rows[i], [look, word] = verdictOf(row), sorted = order.value && order.value !== "step" ? ` · ${number(measure(i))}` : "";
      const item = el("li", { role: "option", tabindex: i === current ? "0" : "-1", "aria-selected": String(i === current), onclick: () => open(i) },
        el("span", { class: `verdict ${look}` }, word), ` · step ${row.step}`, row.split === "evaluation" ? " · evaluation" : "", errata.data.runs.length > 1 ? ` · ${errata.data.runs[row.run].name}` : "", sorted,
        el("code", {}, quoted(row.tokens.slice(0, 60).filter((text) => !SPECIAL.test(text)).join("").slice(0, 120))));
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
    const next = found[Math.max(0, Math.min(found.length - 1, found.indexOf(current) + move))];
    if (next !== undefined) open(next);
  }

  // -- what is open -------------------------------------------------------------------------------------------------

  const paper = el("div", { class: "sheet" });
  function open(index, side = false) {
    nodes.get(current)?.setAttribute("aria-selected", "false");
    nodes.get(current)?.setAttribute("tabindex", "-1");
    current = index;
    together = side;
    const row = rows[index], item = nodes.get(index);
    item?.setAttribute("aria-selected", "true");
    item?.setAttribute("tabindex", "0");
    if (item) reveal(item);
    paper.classList.toggle("together", together);
    if (together) paper.replaceChildren(headline(row, index), members(row, index), ...errata.group.show(row, (i) => open(i)));
    else {
      const shown = sheet.show(row);
      paper.replaceChildren(...[headline(row, index), members(row, index), ...shown.parts].filter(Boolean));
      shown.ready();
    }
    remember();
  }

  function headline(row, index) {
    const [look, word] = verdictOf(row), here = found.indexOf(index);
    return el("div", { class: "headline" }, el("span", { class: `verdict ${look}` }, word), el("span", {}, `step ${row.step}${row.split === "evaluation" ? ", evaluation" : ""}`),
      row.rate === null || row.rate === undefined ? null : el("span", { title: RATE }, `pass rate ${number(row.rate)} (${difficultyOf(row)})`),
      el("span", { class: "id" }, row.problem, errata.data.runs.length > 1 ? ` · ${errata.data.runs[row.run].name}` : ""),
      el("span", { class: "turns" }, el("button", { onclick: () => turn(-1), disabled: here <= 0, "aria-label": "Previous attempt" }, "←"), " ",
        el("button", { onclick: () => turn(1), disabled: here >= found.length - 1, "aria-label": "Next attempt" }, "→")));
  }

  /* The attempt's group, and the same problem in other steps. */
  function members(row, index) {
    const group = errata.group.membersOf(row), others = rows.map((_, i) => i).filter((i) => row.problem && rows[i].problem === row.problem && rows[i].run === row.run && rows[i].group !== row.group && Object.keys(rows[i].signals).length).slice(0, 12);
    const button = (i, more) => el("button", { "aria-current": i === index && !together ? "true" : null, onclick: () => open(i) }, el("span", { class: `verdict ${verdictOf(rows[i])[0]}` }, verdictOf(rows[i])[1]), more);
    if (group.length < 2 && !others.length) return null;
    return el("div", { class: "others" },
      ...(group.length < 2 ? [] : [el("small", {}, "its group:"), ...group.map((i) => button(i, Object.keys(rows[i].signals).length ? "" : " (text)")),
        el("button", { id: "together", "aria-pressed": String(together), onclick: () => open(index, !together) }, together ? "one by one" : "side by side")]),
      ...(others.length ? [el("small", {}, "same problem:"), ...others.map((i) => button(i, ` step ${rows[i].step}`))] : []));
  }

  /* Scroll the list, never the page. */
  function reveal(item) {
    const frame = items.parentElement, box = frame.getBoundingClientRect(), spot = item.getBoundingClientRect();
    if (spot.top < box.top || spot.bottom > box.bottom) frame.scrollTop += spot.top - box.top - box.height / 3;
  }

  // -- keys, and the address that holds what is open ----------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || current < 0 || event.target.closest?.("input:not([type=radio], [type=checkbox]), select, textarea")) return;
    const act = { d: () => (together ? null : sheet.jump(event.shiftKey ? -1 : 1)), n: () => moveOn(1), p: () => moveOn(-1), s: () => (together ? null : sheet.nextSignal()),
      g: () => open(current, !together && errata.group.membersOf(rows[current]).length > 1) }[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  function moveOn(move) {
    const inText = document.activeElement?.classList.contains("token");
    turn(move);
    if (inText) paper.querySelector(".token.chosen")?.focus({ preventScroll: true });
  }

  let quiet = true;
  function remember() {
    if (!quiet) history.replaceState(null, "", `#attempt=${current}&signal=${sheet.signal}${together ? "&group=1" : ""}`);
  }
  errata.remember = remember;

  function start() {
    rows = attempts.rows;
    if (!rows.length) {
      place.replaceChildren(el("p", { class: "empty" }, errata.data.recorded ? "No recorded rollout fits on this page." : "No rollout was recorded (rollouts_saved)."));
      return;
    }
    place.replaceChildren(el("details", { class: "sift", open: !matchMedia("(max-width: 48rem)").matches }, el("summary", {}, "Filter and sort ", count), bar), el("div", { class: "reader" }, el("div", { class: "list" }, items), paper));
    controls();
    const address = new URLSearchParams(location.hash.slice(1)), anchor = location.hash.includes("attempt=");
    if (anchor && attempts.signals.some((s) => s.key === address.get("signal"))) sheet.signal = address.get("signal");
    const example = rows.findIndex((row) => verdictOf(row)[0] === "wrong" && row.tokens.some((_, t) => attempts.correction(row, t) !== null));
    current = anchor && rows[Number(address.get("attempt"))] ? Number(address.get("attempt")) : Math.max(example, 0);
    filter();
    open(current, anchor && address.get("group") === "1");
    quiet = false;
    if (anchor) document.getElementById("rollouts").scrollIntoView();
  }
  start();

  /* New attempts of a running training are appended; what is open stays open. */
  errata.follow(() => {
    const before = rows[current], same = (row) => before && ["run", "split", "step", "problem", "reward"].every((key) => row[key] === before[key]) && row.tokens.join("") === before.tokens.join("");
    attempts.read();
    measured.clear();
    sheet.chips();
    if (!rows.length) return start();
    rows = attempts.rows;
    controls();
    current = Math.max(rows.findIndex(same), 0);
    if (before) sheet.adopt(rows[current]);
    filter();
    sheet.paint(sheet.signal);
  });
})();
