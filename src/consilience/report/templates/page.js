"use strict";
document.documentElement.classList.add("js");

// Three digits, as the page's own numbers have.
const number = (v) => {
  if (v === null || v === undefined) return "–";
  const plain = v === 0 || (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e4);
  return (plain ? Number(v.toPrecision(3)).toString() : v.toExponential(1)).replace(/^-/, "−");
};
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

for (const article of document.querySelectorAll("article[data-input]")) {
  const find = (what) => article.querySelector(what), all = (what) => [...article.querySelectorAll(what)];
  const stage = find(".stage");
  if (!stage) continue;
  const photo = find(".stage .photo"), overlay = find(".stage .overlay"), canvas = find(".stage canvas");
  const caption = find(".shown"), fade = find(".fade"), range = find(".opacity");
  const explore = find(".explore");
  const data = explore ? JSON.parse(explore.dataset.front) : null;

  // From the photograph alone (0) over both (½) to the map alone (1). Over the photograph, weak values are faded.
  const blend = () => {
    const t = Number(range.value) / 100, picture = Math.min(1, 2 * (1 - t));
    photo.style.opacity = picture;
    for (const map of [overlay, canvas]) map.style.opacity = Math.min(1, 2 * t);
    fade.setAttribute("exponent", 1 + 0.8 * picture);
  };
  if (range) range.addEventListener("input", blend);

  const mark = (name, words) => {
    caption.textContent = words || name;
    for (const tile of all("button.tile")) tile.setAttribute("aria-pressed", String(tile.dataset.name === name));
    for (const part of all("tr[data-name], .point")) part.classList.toggle("on", part.dataset.name === name);
  };
  const show = (tile) => {
    overlay.src = tile.querySelector("img").src;
    overlay.alt = tile.querySelector("img").alt;
    overlay.hidden = false;
    canvas.hidden = true;
    mark(tile.dataset.name);
  };
  for (const tile of all("button.tile")) tile.addEventListener("click", () => { show(tile); if (data) rest(); });

  // Along the front: Σ w_j · map_j from small grids, coloured as the maps are.
  let rest = () => {};
  if (!data) continue;
  const slider = find(".along"), here = all(".plane .here"), bars = all(".tile[data-method]");
  const grids = data.grids.map((grid) => grid && bytes(grid)), [high, wide] = data.shape, lut = bytes(data.lut);
  const levels = lut.length / 4 - 1, size = high * wide, mix = new Float64Array(size), sizes = new Float64Array(size);
  const say = (name, text) => { find("output." + name).textContent = text; };
  canvas.width = wide;
  canvas.height = high;

  const weigh = (weights) => bars.forEach((tile) => {
    const w = weights[Number(tile.dataset.method)];
    const bar = tile.querySelector(".track");
    if (!bar || w === null) return;
    bar.firstElementChild.style.setProperty("--w", Math.min(100, 100 * Math.abs(w)) + "%");
    bar.classList.toggle("less", w < 0);
    tile.querySelector(".value").textContent = Math.abs(w) < 0.005 ? "0" : w.toFixed(2);
  });
  const paint = (weights) => {
    mix.fill(0);
    grids.forEach((grid, j) => {
      const [low, step] = data.scales[j];
      if (grid && weights[j]) for (let i = 0; i < size; i++) mix[i] += weights[j] * (low + step * grid[i]);
    });
    for (let i = 0; i < size; i++) sizes[i] = Math.abs(mix[i]);
    sizes.sort();
    const limit = sizes[Math.round(0.995 * (size - 1))] || sizes[size - 1] || 1;
    const context = canvas.getContext("2d"), pixels = context.createImageData(wide, high);
    for (let i = 0; i < size; i++) {
      let share = Math.max(data.signed ? -1 : 0, Math.min(1, mix[i] / limit));
      if (data.signed) share = (share + 1) / 2;
      pixels.data.set(lut.subarray(4 * Math.round(share * (levels - 1)), 4 * Math.round(share * (levels - 1)) + 4), 4 * i);
    }
    context.putImageData(pixels, 0, 0);
  };
  const values = (at) => {
    const chosen = at === data.chosen;
    here.forEach((circle, i) => circle.setAttribute("visibility", i === at ? "visible" : "hidden"));
    weigh(data.weights[at]);
    say("sensitivity", number(data.sensitivity[at]));
    say("correlation", number(data.correlation[at]));
    slider.setAttribute("aria-valuetext", `relative sensitivity ${number(data.sensitivity[at])}, correlation ${number(data.correlation[at])}`);
    return chosen;
  };
  rest = () => { slider.value = data.chosen; values(data.chosen); here.forEach((c) => c.setAttribute("visibility", "hidden")); };
  const consensus = find('button.tile[data-name="consensus"]');
  slider.addEventListener("input", () => {
    if (values(Number(slider.value))) return show(consensus);
    paint(data.weights[Number(slider.value)]);
    overlay.hidden = true;
    canvas.hidden = false;
    mark("", "another point of the front");
  });
  find(".reset").addEventListener("click", () => { show(consensus); rest(); });
  rest();
}
