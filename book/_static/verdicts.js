// Filters of the verdict page: plain selects, no library, works from a file. The state stands in the address.
(function () {
  "use strict";
  const form = document.getElementById("verdict-filters");
  const rows = Array.from(document.querySelectorAll("#verdict-table tbody tr"));
  const count = document.getElementById("verdict-count");
  if (!form || !count) return;
  const selects = Array.from(form.querySelectorAll("select"));

  function apply() {
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some((s) => s.value && row.dataset[s.name] !== s.value);
      if (!row.hidden) shown += 1;
    }
    count.textContent = shown + " of " + rows.length + " claims.";
    return shown;
  }

  function remember() {
    const state = new URLSearchParams(selects.filter((s) => s.value).map((s) => [s.name, s.value]));
    history.replaceState(null, "", "#" + state); // only the part after # may change in a page read from a file
  }

  const asked = new URLSearchParams(location.hash.slice(1));
  for (const s of selects) {
    const value = asked.get(s.name);
    if (value && Array.from(s.options).some((o) => o.value === value)) s.value = value;
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => { apply(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
  form.hidden = false;
  apply();
})();
