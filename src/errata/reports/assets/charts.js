"use strict";
/* The curves: one uPlot per panel, a legend with live numbers, one cursor for all. */
(() => {
  const { el, css, number } = errata;
  const drawn = new Set();
  const chosen = { axis: "step", smooth: "usual", lines: "mean", scale: "linear" };

  const AXES = [["step", "optimizer steps"], ["tokens", "generated tokens"], ["minutes", "minutes of training"]];
  const NAMES = Object.fromEntries(AXES);
  const HEIGHT = 220;
  const clocks = () => Object.values(errata.data.clocks);
  const choosers = [...document.querySelectorAll("fieldset[data-axis]")];
  const seeds = () => errata.data.sections.some((s) => s.panels.some((p) => p.series.some((line) => line.seeds.length)));

  /* The choices above a section's charts; both sections share them. */
  function controls(fieldset) {
    const place = fieldset.dataset.axis;
    const rows = [["axis", "Along", AXES.filter(([name]) => clocks().every((clock) => clock[name].at(-1) > 0))],
      ["scale", "Scale", [["linear", "linear"], ["log", "log", "Values of 0 and below are left out"]]],
      ["lines", "Lines", seeds() ? [["mean", "mean and band"], ["seeds", "one per seed"]] : []],
      ["smooth", "Smoothing", place === "charts" ? [["none", "none"], ["usual", "1/20 of the run"], ["strong", "1/6 of the run"]] : []]];
    let last = fieldset;
    for (const [key, title, options] of rows) {
      const row = key === "axis" ? fieldset : el("fieldset", { class: "chips" }, el("legend", {}, title));
      if (options.length < 2 && key !== "axis") continue;
      errata.chips(row, `${key}-${place}`, options, chosen[key], (value) => {
        chosen[key] = value;
        for (const twin of document.querySelectorAll(`input[name^="${key}-"]`)) twin.checked = twin.value === value;
        redraw();
      });
      if (row !== fieldset) last.after(row);
      last = row;
    }
  }

  /* Where on the chosen axis a step lies. */
  function along(label, step) {
    if (chosen.axis === "step") return step;
    const clock = errata.data.clocks[label];
    let i = clock.step.findIndex((s) => s >= step);
    if (i < 0) i = clock.step.length - 1;
    if (i === 0 || clock.step[i] === step) return clock[chosen.axis][i];
    const part = (step - clock.step[i - 1]) / (clock.step[i] - clock.step[i - 1]);
    return clock[chosen.axis][i - 1] + part * (clock[chosen.axis][i] - clock[chosen.axis][i - 1]);
  }

  /* Mean over `window` values (odd) around each. */
  function running(values, window) {
    const half = Math.floor(window / 2);
    return values.map((_, i) => {
      const near = values.slice(Math.max(i - half, 0), i + half + 1).filter((v) => v !== null);
      return near.length ? near.reduce((a, b) => a + b, 0) / near.length : null;
    });
  }

  class Chart {
    constructor(panel) {
      this.panel = panel;
      this.legend = el("ul", { class: "legend" });
      this.where = el("li", { class: "where" });
      this.box = el("div", { class: "plot", tabindex: "0", role: "img", "aria-label": this.summary(), onkeydown: (e) => this.key(e) });
      this.note = el("figcaption", {});
      this.figure = el("figure", {}, el("h4", {}, panel.title), this.legend, this.box, this.note);
      new ResizeObserver(() => this.draw()).observe(this.box);
    }

    summary() {
      const ends = this.panel.series.map((s) => `${s.name} from ${number(s.y[0], this.panel.unit)} to ${number(s.y.at(-1), this.panel.unit)}`);
      return `${this.panel.title}: ${ends.join("; ")}`;
    }

    /* What the vertical axis counts. */
    unit() {
      return this.panel.unit === "share" ? "per cent" : this.panel.unit || this.panel.title.toLowerCase();
    }

    /* Lines of one series as they are to be drawn: values, band, faint values behind. */
    lines(s) {
      const each = s.seeds.length ? s.seeds : [["", s.raw || s.y]];
      const window = this.panel.smoothed === 1 || chosen.smooth === "none" ? 1 : chosen.smooth === "strong" ? Math.floor(s.x.length / 6) | 1 : 0;
      const smooth = (values) => running(values, window || Math.max(Math.floor(s.x.length / 20) | 1, 1));
      if (chosen.lines === "seeds" && s.seeds.length) return each.map(([name, values]) => ({ name: `${s.name === this.panel.title ? "" : s.name} ${name}`.trim(), y: this.panel.smoothed === 1 ? values : smooth(values) }));
      const name = s.name === this.panel.title ? "" : s.name;
      if (!window || this.panel.smoothed === 1) return [{ name, y: s.y, low: s.low, high: s.high, raw: s.raw }];
      const curves = each.map(([, values]) => running(values, window)), at = s.x.map((_, i) => curves.map((c) => c[i]).filter((v) => v !== null));
      const band = curves.length > 1 ? { low: at.map((v) => Math.min(...v)), high: at.map((v) => Math.max(...v)) } : {};
      return [{ name, y: at.map((v) => (v.length ? v.reduce((a, b) => a + b, 0) / v.length : null)), ...band, raw: window > 1 ? s.raw : null }];
    }

    draw(anew = false) {
      const width = this.box.clientWidth;
      if (!width) return;
      drawn.add(this);
      if (this.plot && !anew) {
        if (this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
        return;
      }
      this.plot?.destroy();
      const ink = css("--faint-ink"), grid = { stroke: css("--grid"), width: 1 }, share = this.panel.unit === "share", log = chosen.scale === "log" && this.positive();
      const series = [{}], bands = [], tables = [], keep = (values) => (log ? values.map((v) => (v > 0 ? v : null)) : values);
      this.main = [];
      this.values = [];
      const entries = [];
      for (const s of this.panel.series) {
        const colour = css(`--line-${s.colour % errata.lines}`);
        this.lines(s).forEach((line, n) => {
          const columns = [s.x.map((step) => along(s.clock, step)), keep(line.y)], value = el("b");
          this.main.push(series.length);
          this.values.push(value);
          entries.push(el("li", {}, el("i", { class: `swatch${n ? " dashed" : ""}`, "data-colour": s.colour % errata.lines }), line.name ? `${line.name} ` : "", value));
          series.push({ stroke: colour, width: 2, dash: n ? [6, 3 + 2 * n] : undefined, spanGaps: true, points: { show: s.x.length <= 30, size: 5, fill: colour } });
          if (line.low && !log) {
            const edge = { stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
            series.push(edge, edge);
            columns.push(line.low, line.high);
            bands.push({ series: [series.length - 1, series.length - 2], fill: colour + "2e" });
          }
          if (line.raw) {
            series.push({ stroke: colour + "59", width: 1, spanGaps: true, points: { show: false } });
            columns.push(keep(line.raw));
          }
          tables.push(columns);
        });
      }
      this.legend.replaceChildren(...entries, this.where);
      const usual = this.panel.smoothed > 1 && chosen.smooth !== "none";
      this.note.textContent = this.panel.about + (usual ? ` Running mean over ${chosen.smooth === "strong" ? "a sixth of the run" : `${this.panel.smoothed} steps`}.` : "") + (chosen.scale === "log" && !log ? " Linear: it has values of 0 or below." : "");
      const look = { stroke: ink, grid, ticks: { show: false }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18, labelGap: 0 };
      const options = {
        width, height: HEIGHT, series, bands,
        legend: { show: false },
        scales: { x: { time: false }, y: log ? { distr: 3 } : { range: (u, low, high) => this.range(low, high, share) } },
        axes: [
          { ...look, size: 26, space: 60, label: NAMES[chosen.axis], values: (u, ticks) => ticks.map((v) => number(v)) },
          { ...look, size: 52, space: 30, label: this.unit(), values: (u, ticks, i, space, step) => ticks.map((v) => tick(v, step, share, log)) },
        ],
        cursor: { drag: { x: false, y: false }, sync: { key: "errata", setSeries: false }, points: { size: 7 } },
        hooks: { setCursor: [(u) => this.show(u.cursor.idx)], drawAxes: [zeroLine] },
      };
      this.plot = new uPlot(options, uPlot.join(tables), this.box);
      this.show(null);
    }

    positive() {
      return this.panel.series.every((s) => this.lines(s).every((line) => line.y.every((v) => v === null || v >= 0) && line.y.some((v) => v > 0)));
    }

    /* Counts, shares, nats and norms begin at 0; what can be below 0 shows where 0 is. */
    range(low, high, share) {
      if (low === null || high === null || low === undefined) return [0, 1];
      if (share) return [0, Math.min(Math.max(high * 1.08, 0.01), 1.02)];
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      return low >= 0 ? [0, high + room || 1] : [low - room, Math.max(high + room, 0)];
    }

    /* Numbers at the cursor, and the place; without one the last of each line. */
    show(index) {
      this.main.forEach((column, i) => {
        const values = this.plot.data[column];
        let at = index ?? values.length - 1;
        while (at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
        this.values[i].textContent = number(values[at], this.panel.unit);
      });
      const x = this.plot.data[0], at = index ?? x.length - 1;
      this.where.textContent = x.length ? (chosen.axis === "step" ? `step ${number(x[at])}` : `${number(x[at])} ${chosen.axis}`) : "";
    }

    key(event) {
      const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (!(event.key in steps) || !this.plot) return;
      event.preventDefault();
      const x = this.plot.data[0], now = this.plot.cursor.idx ?? (steps[event.key] > 0 ? -1 : x.length);
      const next = Math.max(0, Math.min(x.length - 1, now + steps[event.key]));
      this.plot.setCursor({ left: this.plot.valToPos(x[next], "x"), top: 20 });
    }
  }

  /* As many decimals as tell two neighbouring ticks apart. */
  function tick(value, step, share, log) {
    if (value === null || value === undefined) return "";
    if (log) return share ? `${+(100 * value).toPrecision(1)}` : number(value);
    const scaled = share ? 100 * value : value, apart = share ? 100 * step : step;
    if (Math.abs(scaled) >= 1e4 || (scaled !== 0 && apart < 1e-4)) return number(scaled);
    let digits = 0;
    while (digits < 6 && Math.abs(apart * 10 ** digits - Math.round(apart * 10 ** digits)) > 1e-6) digits += 1;
    return scaled.toFixed(digits).replace("-", "−");
  }

  function zeroLine(u) {
    const { min, max } = u.scales.y;
    if (!(min < 0 && max > 0)) return;
    const y = Math.round(u.valToPos(0, "y", true));
    u.ctx.save();
    u.ctx.strokeStyle = css("--faint-ink");
    u.ctx.lineWidth = 1;
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, y);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
    u.ctx.stroke();
    u.ctx.restore();
  }

  function redraw() {
    for (const chart of drawn) chart.draw(true);
  }

  /* All sections anew; what was folded stays so. */
  function build() {
    const folded = new Map([...document.querySelectorAll("#charts > details")].map((box) => [box.firstChild.textContent, box.open]));
    for (const chart of drawn) chart.plot?.destroy();
    drawn.clear();
    for (const place of ["learning", "charts"]) document.getElementById(place).replaceChildren();
    for (const section of errata.data.sections) {
      const place = document.getElementById(section.title === "Evaluation" ? "learning" : "charts");
      const grid = el("div", { class: "grid" }, ...section.panels.map((panel) => new Chart(panel).figure));
      place.append(place.id === "learning" ? grid : el("details", { open: folded.get(section.title) ?? section.open }, el("summary", {}, section.title), grid));
    }
    for (const fieldset of choosers) {
      const place = document.getElementById(fieldset.dataset.axis), empty = !place.childElementCount;
      for (let row = fieldset; row !== place; row = row.nextElementSibling) row.hidden = empty;
      if (empty) place.append(el("p", { class: "empty" }, `Nothing has been ${place.id === "learning" ? "evaluated" : "logged"} yet.`));
    }
  }
  choosers.forEach(controls);
  build();
  errata.follow(build);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
