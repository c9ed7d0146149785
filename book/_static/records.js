// The table of records: filters, a search over settings, and sorting by a column. No library, works from a file.
(function () {
  "use strict";
  const form = document.getElementById("record-filters"), table = document.getElementById("record-table");
  const count = document.getElementById("record-count");
  if (!form || !table || !count) return;
  const body = table.tBodies[0], rows = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
  const selects = Array.from(form.querySelectorAll("select[data-filter]"));
  const texts = new Map(rows.map((row) => [row, `${row.textContent} ${row.dataset.settings}`.toLowerCase()]));

  function filter() {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some((s) => s.value && row.dataset[s.name] !== s.value) ||
        words.some((word) => !texts.get(row).includes(word));
      if (!row.hidden) shown += 1;
    }
    count.textContent = `${shown} of ${rows.length} records.`;
  }

  // The value of a cell: a number where the cell has one, else its text; null where it is empty.
  function value(row, column) {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return cell.textContent;
  }

  function sort(column, direction) {
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    rows.sort((one, other) => {
      const a = value(one, column), b = value(other, column);
      if (a === null || b === null) return (a === null) - (b === null); // what has no number stands last
      return direction * compare(a, b);
    });
    body.append(...rows);
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== column ? "none" : direction > 0 ? "ascending" : "descending");
    });
    form.elements.order.value = `${column} ${direction}`;
  }

  // Headings become buttons, and entries of a list for phones, where headings are not shown.
  const order = form.elements.order;
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    const first = "number" in head.dataset ? -1 : 1; // of numbers one wants the largest first
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(i, now === "none" ? first : now === "ascending" ? -1 : 1);
    });
    for (const [direction, words] of [[1, "rising"], [-1, "falling"]])
      order.add(new Option(`${button.textContent}, ${words}`, `${i} ${direction}`));
  });

  function remember() {
    const asked = [...new FormData(form)].filter(([name, v]) => v && name !== "order");
    history.replaceState(null, "", "#" + new URLSearchParams(asked));
  }

  for (const [name, v] of new URLSearchParams(location.hash.slice(1)))
    if (form.elements[name] && name !== "order") form.elements[name].value = v;
  order.addEventListener("change", () => { if (order.value) sort(...order.value.split(" ").map(Number)); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { filter(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { filter(); remember(); }));
  // A link to a record that the filters hide shows it again.
  window.addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) { form.reset(); }
  });
  form.hidden = false;
  filter();
})();
