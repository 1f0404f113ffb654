"use strict";
for (const box of document.querySelectorAll("[data-show]")) {
  box.addEventListener("change", () => document.body.classList.toggle("no-" + box.dataset.show, !box.checked));
}
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelectorAll("tbody tr")) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  }
});
for (const head of document.querySelectorAll("thead th")) {
  head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    const table = head.closest("table");
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numbers = head.dataset.sort === "number";
    const key = (row) => {
      const cell = row.cells[head.cellIndex];
      if (!numbers) return cell.textContent;
      return "value" in cell.dataset ? Number(cell.dataset.value) : -Infinity;
    };
    const order = (a, b) => (numbers ? key(a) - key(b) : key(a).localeCompare(key(b)));
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -order(a, b) : order(a, b)));
    table.tBodies[0].append(...rows);
  });
}
