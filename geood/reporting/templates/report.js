"use strict";
(() => {
  const all = Array.from(document.querySelectorAll(".card"));
  const root = document.documentElement;
  const said = document.getElementById("said");
  let current = -1;
  const shown = () => all.filter((card) => !card.hidden);

  function tell(text) {
    said.textContent = text;
    said.classList.add("on");
    clearTimeout(tell.timer);
    tell.timer = setTimeout(() => said.classList.remove("on"), 1600);
  }

  function mark(card) {
    for (const other of document.querySelectorAll(".on:not(#said)")) other.classList.remove("on");
    if (!card) return;
    card.classList.add("on");
    const outline = document.getElementById("o-" + card.id);
    if (outline) outline.classList.add("on");
  }

  function go(step) {
    const cards = shown();
    if (!cards.length) return;
    current = Math.min(cards.length - 1, Math.max(0, current + step));
    const card = cards[current];
    mark(card);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "center" });
  }

  function copy(card) {
    const text = card && card.dataset.copy;
    if (!text) return;
    const done = () => tell("copied " + text);
    const old = () => {
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "hidden";
      document.body.append(area);
      area.select();
      const fine = document.execCommand("copy");
      area.remove();
      if (fine) done(); else tell("copying is not allowed here: " + text);
    };
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, old);
    else old();
  }

  function outlines() {
    const off = document.body.classList.toggle("no-outlines");
    for (const button of document.querySelectorAll("[data-do=outlines]")) button.setAttribute("aria-pressed", String(!off));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button && button.dataset.do === "copy") copy(button.closest(".card"));
    if (button && button.dataset.do === "outlines") outlines();
    if (button && button.dataset.do === "theme") {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    }
    const outline = event.target.closest(".map a");
    const card = outline ? document.getElementById(outline.getAttribute("href").slice(1)) : event.target.closest(".card");
    if (!card || !card.classList.contains("card")) return;
    if (outline) { event.preventDefault(); card.hidden = false; card.scrollIntoView({ block: "center" }); card.focus({ preventScroll: true }); }
    current = shown().indexOf(card);
    mark(card);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const step = { j: 1, ArrowRight: 1, ArrowDown: 1, k: -1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && (all.includes(document.activeElement) || event.key === "j" || event.key === "k" || event.key.endsWith("Right") || event.key.endsWith("Left"))) {
      event.preventDefault();
      go(step);
    } else if (event.key === "o") outlines();
    else if (event.key === "c") copy(shown()[current]);
  });

  for (const range of document.querySelectorAll("[data-opacity]")) {
    const layer = range.closest(".scene").querySelector(".score");
    const set = () => { layer.style.opacity = range.value / 100; };
    range.addEventListener("input", set);
    set();
  }

  const chosen = document.getElementById("class");
  const judged = document.getElementById("judged");
  function filter() {
    let count = 0;
    for (const card of all) {
      const fine = (!chosen || !chosen.value || card.dataset.class === chosen.value)
        && (!judged || !judged.value || (judged.value === "none" ? !card.dataset.verdict : card.dataset.verdict === judged.value));
      card.hidden = !fine;
      count += fine;
    }
    current = -1;
    document.getElementById("count").textContent = count + " of " + all.length;
  }
  for (const select of [chosen, judged]) if (select) select.addEventListener("change", filter);
})();
