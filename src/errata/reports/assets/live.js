"use strict";
/* A running training: asks for the page again, and takes over what has changed. What is open stays open. */
(() => {
  const EVERY = 2000, status = document.querySelector(".live"), SERVER_WRITTEN = [".facts", ".sub", "#settings", ".tuning", "section#results .comparison"];
  let known = null;

  async function look() {
    try {
      const answer = await fetch(location.pathname, { headers: known ? { "If-None-Match": known } : {}, cache: "no-store" });
      if (answer.status === 200) {
        const tag = answer.headers.get("ETag"), first = known === null;
        known = tag;
        const next = new DOMParser().parseFromString(await answer.text(), "text/html"), text = next.getElementById("data").textContent;
        if (!first || text !== document.getElementById("data").textContent) take(next, text);
      } else if (answer.status !== 304) throw new Error(answer.status);
      status.classList.remove("lost");
      status.textContent = `following the run; looked at ${new Date().toLocaleTimeString()}`;
    } catch {
      status.classList.add("lost");
      status.textContent = "the server of this page has ended; what was read stays";
    }
    setTimeout(look, EVERY);
  }

  function take(next, text) {
    errata.data = JSON.parse(text);
    document.getElementById("data").textContent = text;
    for (const selector of SERVER_WRITTEN) {
      const here = document.querySelector(selector), there = next.querySelector(selector);
      if (!here || !there) continue;
      const open = [...here.querySelectorAll("details")].map((box) => box.open);
      here.replaceChildren(...document.importNode(there, true).childNodes);
      [...here.querySelectorAll("details")].forEach((box, i) => { box.open = open[i] ?? box.open; });
    }
    for (const draw of errata.updates) draw();
  }
  setTimeout(look, EVERY);
})();
