"use strict";
/* What the other scripts share: the page's data, and making elements whose text can only ever be text. */
const errata = {
  data: JSON.parse(document.getElementById("data").textContent),
  lines: 8,
  updates: [],

  /* Call `draw` for the data of a running training whenever it has grown. */
  follow(draw) {
    errata.updates.push(draw);
  },

  el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  },

  svg(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  },

  css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  },

  /* A value as a reader wants it: shares in per cent, large numbers with a unit, small ones with three digits. */
  number(value, unit) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (unit === "share") return `${(100 * value).toFixed(1)} %`;
    const size = Math.abs(value);
    for (const [scale, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= scale) return `${(value / (letter === "k" ? 1e3 : scale)).toPrecision(3)}${letter}`;
    }
    if (value < 0) return `−${errata.number(-value)}`;
    if (Number.isInteger(value)) return String(value);
    return size !== 0 && size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  },

  /* Radio buttons that look like chips; `choose` gets the value. */
  chips(fieldset, name, options, chosen, choose) {
    for (const [value, label, title] of options) {
      const input = errata.el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => choose(value) });
      fieldset.append(errata.el("label", { title }, input, errata.el("span", {}, label)));
    }
    return fieldset;
  },
};
