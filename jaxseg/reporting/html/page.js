// The images of a page of runs: filtered by class, sorted, enlarged. Without this script they are all there, worst first.
"use strict";

(() => {
  const list = document.getElementById("examples");
  if (!list) return;
  // mean[example][run] and iou[example][run][class]: IoU or null; colors: "r,g,b" -> class name.
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const rows = [...list.children];
  const byClass = document.getElementById("by-class");
  const byRun = document.getElementById("by-run");
  const order = document.getElementById("order");

  /** What an example is judged by: its mean IoU, or the chosen class's IoU; null where there is none. */
  function score(example, run) {
    return byClass.value === "" ? data.mean[example][run] : data.iou[example][run][Number(byClass.value)];
  }

  /** Shows the examples that have the chosen class, in the chosen order; those without a mean come last. */
  function arrange() {
    const run = Number(byRun.value);
    const sign = Number(order.value);
    const shown = rows
      .map((row, example) => ({ row, example, value: score(example, run) }))
      .filter(({ value }) => byClass.value === "" || value !== null);
    shown.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.example - b.example;
      return sign * (a.value - b.value) || a.example - b.example;
    });
    const what = byClass.value === "" ? "mean IoU" : `IoU of ${byClass.selectedOptions[0].textContent}`;
    for (const { row, example } of shown) {
      row.querySelector(".what").textContent = what;
      row.querySelectorAll(".score").forEach((element, index) => {
        const value = score(example, index);
        element.textContent = value === null ? "–" : value.toFixed(3);
      });
    }
    list.replaceChildren(...shown.map(({ row }) => row));
    document.getElementById("count").textContent = `${shown.length} of the ${rows.length} on this page`;
  }

  for (const control of [byClass, byRun, order]) control.addEventListener("change", arrange);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());

  // The photo below every error map, in gray (page.css).
  for (const row of rows) {
    const photo = row.querySelector("img.photo").src;
    row.querySelectorAll("img.error").forEach((error) => error.style.setProperty("--photo", `url("${photo}")`));
  }

  // Enlarging: a dialog that steps through the pictures of one example in one place, so that they can be compared.
  const large = document.getElementById("large");
  const place = document.getElementById("large-place");
  let figures = [];
  let name = "";
  let current = 0;

  function show(index) {
    current = (index + figures.length) % figures.length;
    const figure = figures[current];
    const image = figure.querySelector("img").cloneNode();
    image.loading = "eager";
    place.replaceChildren(image);
    document.getElementById("large-title").textContent = `${figure.dataset.title} · ${name}`;
    document.getElementById("large-class").textContent = "";
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    figures = [...button.closest(".panels").querySelectorAll("figure")];
    name = button.closest(".example").dataset.id;
    show(figures.indexOf(button.parentElement));
    large.showModal();
  });
  document.getElementById("large-back").addEventListener("click", () => show(current - 1));
  document.getElementById("large-next").addEventListener("click", () => show(current + 1));
  document.getElementById("large-close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => event.target === large && large.close());
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  });

  /** The class below the pointer, read from the color of the enlarged map. */
  place.addEventListener("pointermove", (event) => {
    const image = event.target;
    if (!(image instanceof HTMLImageElement) || !image.matches(".map:not(.error)")) return;
    const box = image.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * image.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * image.naturalHeight);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.drawImage(image, -x, -y);
    const [r, g, b, opaque] = context.getImageData(0, 0, 1, 1).data;
    document.getElementById("large-class").textContent = opaque ? (data.colors[`${r},${g},${b}`] ?? "") : "void";
  });

  arrange();
})();
