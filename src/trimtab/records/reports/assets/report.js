const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts"), themes = read("themes");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function fitted(config, width) {
  // On a telephone legends stand below one another.
  if (width >= 560) return config;
  return { ...config, legend: { ...config.legend, direction: "vertical", columns: 1 } };
}
async function draw() {
  const theme = themes[dark.matches ? "dark" : "light"];
  let drawn = 0;
  for (const [index, spec] of charts.entries()) {
    const place = document.getElementById(`chart-${index}`);
    if (!place.clientWidth) continue;  // folded away
    const { title, ...bare } = spec;  // the title stands above, as text
    const config = fitted(theme, place.clientWidth);
    const options = { config, actions: false, renderer: "svg", tooltip: { disableDefaultStyle: false } };
    await vegaEmbed(place, bare, options);
    drawn += 1;
  }
  document.documentElement.dataset.drawn = drawn;
}
dark.addEventListener("change", draw);
for (const fold of document.querySelectorAll("details.fold")) fold.addEventListener("toggle", draw);
draw();
