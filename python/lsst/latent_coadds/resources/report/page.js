"use strict";
document.documentElement.classList.remove("noscript");

// Blinking of two images: the second lies on the first.
for (const viewer of document.querySelectorAll("[data-viewer]")) {
  const images = viewer.querySelectorAll(".blink img");
  const blink = viewer.querySelector("[data-blink]");
  const slider = viewer.querySelector("input[type=range]");
  const choices = viewer.querySelectorAll("[data-show]");
  let timer = null;
  const show = (fraction) => {
    images[1].style.opacity = fraction;
    slider.value = 100 * fraction;
    for (const choice of choices) choice.setAttribute("aria-pressed", String(Number(choice.dataset.show) === fraction));
  };
  const stop = () => { clearInterval(timer); timer = null; blink.setAttribute("aria-pressed", "false"); };
  const toggle = () => {
    if (timer !== null) { stop(); return; }
    timer = setInterval(() => show(Number(images[1].style.opacity) > 0.5 ? 0 : 1), 700);
    blink.setAttribute("aria-pressed", "true");
  };
  blink.addEventListener("click", toggle);
  slider.addEventListener("input", () => { stop(); show(slider.value / 100); });
  for (const choice of choices) choice.addEventListener("click", () => { stop(); show(Number(choice.dataset.show)); });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, button, a") && event.key !== "b") return;
    if (event.key === "b") toggle();
    for (const choice of choices) if (choice.dataset.key === event.key) choice.click();
  });
  show(0);
}

// The arrow keys leaf through the patches.
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = rel && document.querySelector(`a[rel=${rel}]`);
  if (link) link.click();
});

// Tables are sorted by the column whose head is pressed.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.querySelectorAll("thead th")];
  for (const head of heads) {
    const column = head.cellIndex;
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rank = (row) => { const v = parseFloat(row.cells[column].dataset.value); return Number.isNaN(v) ? -Infinity : v; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (falling ? rank(b) - rank(a) : rank(a) - rank(b)));
      table.tBodies[0].append(...rows);
    });
  }
}

const filter = document.querySelector("#only-failed");
if (filter) filter.addEventListener("change", () => {
  for (const row of document.querySelectorAll("tr[data-passed=true]")) row.hidden = filter.checked;
});
