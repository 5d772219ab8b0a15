"use strict";
/* The curves: one uPlot per panel, a legend with live numbers, one cursor for all. */
(() => {
  const { el, css, number, data } = errata;
  const drawn = new Set();
  let axis = "step";

  const AXES = [["step", "optimizer steps"], ["tokens", "generated tokens"], ["minutes", "minutes of training"]];
  const known = AXES.filter(([name]) => Object.values(data.clocks).every((clock) => clock[name].at(-1) > 0));
  const choosers = [...document.querySelectorAll("fieldset[data-axis]")];
  for (const fieldset of choosers) {
    errata.chips(fieldset, `axis-${fieldset.dataset.axis}`, known, axis, (value) => {
      axis = value;
      for (const other of choosers) other.querySelector(`input[value=${axis}]`).checked = true;
      redraw();
    });
  }

  /* Where on the chosen axis a step lies. */
  function along(label, step) {
    if (axis === "step") return step;
    const clock = data.clocks[label];
    let i = clock.step.findIndex((s) => s >= step);
    if (i < 0) i = clock.step.length - 1;
    if (i === 0 || clock.step[i] === step) return clock[axis][i];
    const part = (step - clock.step[i - 1]) / (clock.step[i] - clock.step[i - 1]);
    return clock[axis][i - 1] + part * (clock[axis][i] - clock[axis][i - 1]);
  }

  class Chart {
    constructor(panel) {
      this.panel = panel;
      this.values = panel.series.map(() => el("b"));
      this.box = el("div", { class: "plot", tabindex: "0", role: "img", "aria-label": this.summary(), onkeydown: (e) => this.key(e) });
      const legend = panel.series.map((series, i) =>
        el("li", {}, el("i", { class: "swatch", "data-colour": series.colour % errata.lines }), series.name === panel.title ? "" : `${series.name} `, this.values[i]));
      const smoothed = panel.smoothed > 1 ? ` Running mean over ${panel.smoothed} steps.` : "";
      const unit = panel.unit && panel.unit !== "share" ? el("small", {}, ` ${panel.unit}`) : null;
      this.figure = el("figure", {}, el("h4", {}, panel.title, unit), el("ul", { class: "legend" }, ...legend), this.box,
        el("figcaption", {}, panel.about + smoothed));
      new ResizeObserver(() => this.draw()).observe(this.box);
    }

    summary() {
      const ends = this.panel.series.map((s) => `${s.name} from ${number(s.y[0], this.panel.unit)} to ${number(s.y.at(-1), this.panel.unit)}`);
      return `${this.panel.title}: ${ends.join("; ")}`;
    }

    draw(anew = false) {
      const width = this.box.clientWidth;
      if (!width) return;
      drawn.add(this);
      if (this.plot && !anew) {
        if (this.plot.width !== width) this.plot.setSize({ width, height: 190 });
        return;
      }
      this.plot?.destroy();
      const ink = css("--faint-ink"), grid = { stroke: css("--grid"), width: 1 }, share = this.panel.unit === "share";
      const series = [{}], bands = [], tables = [];
      this.main = [];
      for (const s of this.panel.series) {
        const colour = css(`--line-${s.colour % errata.lines}`);
        const columns = [s.x.map((step) => along(s.clock, step)), s.y];
        this.main.push(series.length);
        const few = s.x.length <= 30;
        series.push({ stroke: colour, width: 2, spanGaps: true, points: { show: few, size: 5, fill: colour } });
        if (s.low) {
          const edge = { stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
          series.push(edge, edge);
          columns.push(s.low, s.high);
          bands.push({ series: [series.length - 1, series.length - 2], fill: colour + "2e" });
        }
        if (s.raw) {
          series.push({ stroke: colour + "59", width: 1, spanGaps: true, points: { show: false } });
          columns.push(s.raw);
        }
        tables.push(columns);
      }
      const look = { stroke: ink, grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      const options = {
        width, height: 190, series, bands,
        legend: { show: false },
        scales: { x: { time: false }, y: { range: (u, low, high) => this.range(low, high, share) } },
        axes: [
          { ...look, size: 26, space: 60, values: (u, ticks) => ticks.map((v) => number(v)) },
          { ...look, size: 50, space: 32, values: (u, ticks) => ticks.map((v) => (share ? `${+(100 * v).toFixed(1)} %` : number(v))) },
        ],
        cursor: { drag: { x: false, y: false }, sync: { key: "errata", setSeries: false }, points: { size: 7 } },
        hooks: { setCursor: [(u) => this.show(u.cursor.idx)] },
      };
      this.plot = new uPlot(options, uPlot.join(tables), this.box);
      this.show(null);
    }

    range(low, high, share) {
      if (low === null || high === null || low === undefined) return [0, 1];
      if (share) return [0, Math.min(Math.max(high * 1.08, 0.01), 1.02)];
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      return [low >= 0 && low - room < 0.35 * high ? 0 : low - room, high + room];
    }

    /* Numbers at the cursor; without one the last of each line. */
    show(index) {
      this.main.forEach((column, i) => {
        const values = this.plot.data[column];
        let at = index ?? values.length - 1;
        while (at > 0 && (values[at] === null || values[at] === undefined)) at -= 1;
        this.values[i].textContent = number(values[at], this.panel.unit);
      });
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

  function redraw() {
    for (const chart of drawn) chart.draw(true);
  }

  for (const section of data.sections) {
    const place = document.getElementById(section.title === "Evaluation" ? "learning" : "charts");
    const grid = el("div", { class: "grid" }, ...section.panels.map((panel) => new Chart(panel).figure));
    place.append(place.id === "learning" ? grid : el("details", { open: section.open }, el("summary", {}, section.title), grid));
  }
  for (const fieldset of choosers) {
    if (fieldset.nextElementSibling.childElementCount) continue;
    fieldset.hidden = true;
    fieldset.after(el("p", { class: "empty" }, `Nothing has been ${fieldset.dataset.axis === "learning" ? "evaluated" : "logged"} yet.`));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
