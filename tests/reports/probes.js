/* What the browser tests ask a page, put into it before its own scripts run. */
window.drawn = []; // every text that is drawn on a canvas: the charts' axes
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  window.drawn.push(String(text));
  return fillText.call(this, text, ...rest);
};

window.probes = {
  /* The box of the first element of each selector. */
  boxes: (selectors) => selectors.map((selector) => document.querySelector(selector).getBoundingClientRect().toJSON()),

  /* Opens an attempt that is wrong and has its tokens' signals. */
  openWrong: () => {
    const wrong = errata.attempts.rows.findIndex((row) => row.signals.divergence && !row.solved);
    document.querySelectorAll(".list li")[wrong].click();
    return wrong;
  },

  texts: (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent),

  /* Text whose colour is too near to the colour behind it. */
  faint: () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const paper = canvas.getContext("2d", { willReadFrequently: true });
    const mixed = (colours) => {
      for (const colour of colours) {
        paper.fillStyle = colour;
        paper.fillRect(0, 0, 1, 1);
      }
      return [...paper.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
    const found = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const here = node.parentElement, said = node.textContent.trim();
      const ignored = here.closest("script, noscript, [disabled], label:has(:disabled)");
      if (!said || ignored || !here.getBoundingClientRect().width || !here.checkVisibility()) continue;
      const behind = ["white"];
      for (let e = here; e; e = e.parentElement) behind.splice(1, 0, getComputedStyle(e).backgroundColor);
      const back = mixed(behind), front = mixed([`rgb(${back})`, getComputedStyle(here).color]);
      const [low, high] = [light(back), light(front)].sort((a, b) => a - b), ratio = (high + 0.05) / (low + 0.05);
      if (ratio < 4.5) found.add(`${here.className || here.tagName} "${said.slice(0, 20)}" ${ratio.toFixed(2)}`);
    }
    return [...found];
  },

  /* What a finger is to touch and is smaller than 44 pixels; a radio button's label stands for it. */
  small: () => [...document.querySelectorAll("button, select, input, summary, nav a, .list li, .chips label")]
    .filter((element) => !element.matches("input[type=radio], input[type=checkbox]") && element.checkVisibility())
    .filter((element) => {
      const box = element.getBoundingClientRect();
      return box.width && (box.height < 43.5 || box.width < 43.5);
    })
    .map((element) => element.outerHTML.slice(0, 90)),
};
