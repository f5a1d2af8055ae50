"use strict";
document.documentElement.classList.add("js");

// Sliders and choices set a variable of the figure that they are in; its style does the rest.
for (const control of document.querySelectorAll("[data-sets]")) {
  const figure = control.closest("figure");
  const words = (control.dataset.words || "").split("|");
  const output = control.closest(".controls").querySelector("output");
  const set = () => {
    figure.style.setProperty("--" + control.dataset.sets, control.value);
    const said = words[Number(control.value)];
    if (output && said) {
      output.textContent = said;
      control.setAttribute("aria-valuetext", said);
    }
  };
  control.addEventListener("input", set);
  set();
}

// A click on the head of a column sorts by it, a second one the other way round; empty cells stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const order = new Intl.Collator("en", { numeric: true }).compare;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const empty = (value) => value === "" || value === "-";
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (empty(x) || empty(y)) return empty(x) - empty(y);
      const step = Number(x) - Number(y);
      return sign * (Number.isNaN(step) ? order(x, y) : step);
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
