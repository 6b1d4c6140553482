// Tables with class "sortable": a click on a column's head sorts by it, a second click reverses.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.sort ?? cell.textContent.trim();
        return text !== "" && !isNaN(text) ? Number(text) : text;
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return typeof x === "number" ? x - y : x.localeCompare(y);
      };
      const rows = [...table.tBodies[0].rows].sort(compare);
      if (down) rows.reverse();
      // Empty cells come last in both directions.
      const empty = rows.filter((row) => key(row) === "");
      table.tBodies[0].append(...rows.filter((row) => key(row) !== ""), ...empty);
    });
  });
}
