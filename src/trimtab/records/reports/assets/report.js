const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts"), themes = read("themes");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
async function draw() {
  const config = themes[dark.matches ? "dark" : "light"];
  const options = { config, actions: false, renderer: "svg", tooltip: { disableDefaultStyle: false } };
  for (const [index, spec] of charts.entries()) {
    await vegaEmbed(document.getElementById(`chart-${index}`), spec, options);
  }
  document.documentElement.dataset.drawn = charts.length;
}
dark.addEventListener("change", draw);
draw();
