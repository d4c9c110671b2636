"use strict";
(() => {
  const table = document.getElementById("recordings"), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const byText = new Intl.Collator("en", { numeric: true }).compare;

  // rows without a value come last, whichever way the others go
  const sortBy = (at, down) => {
    const text = heads[at].dataset.by === "text";
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[at];
      return [text ? cell.firstChild.textContent : cell.dataset.v, row];
    });
    keyed.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = text ? byText(a, b) : Number(a) - Number(b);
      return down ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
  };

  heads.forEach((head, at) => {
    if (!head.dataset.by) return;
    const button = document.createElement("button");
    button.type = "button";
    head.dataset.what = head.textContent; // for print: a button is not repeated on each page
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(at, now ? now === "ascending" : head.dataset.by === "number");
    });
  });
  table.classList.add("sortable");
})();
