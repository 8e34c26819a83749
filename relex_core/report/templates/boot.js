const read = (id) => JSON.parse(document.getElementById(id).textContent);
const { themes, narrow } = read("settings"), charts = read("charts");
const dark = matchMedia("(prefers-color-scheme: dark)"), small = matchMedia(`(max-width: ${narrow}px)`);
const painted = () => new Promise((go) => setTimeout(go));
let drawing = 0;
async function drawAll() {
  const mine = ++drawing, config = structuredClone(themes[dark.matches ? "dark" : "light"]);
  if (small.matches) Object.assign(config.legend, { columns: 1, titleLimit: 210, gradientLength: 150 });
  if (small.matches) (config.axis.labelLimit = 110), (config.axisQuantitative.tickCount = 4);
  for (const place of document.querySelectorAll(".chart")) {
    await painted();
    if (mine !== drawing) return;
    const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: dark.matches ? "dark" : "light" } };
    try {
      await vegaEmbed(place, { ...charts[place.id], config }, options);
    } catch (error) {
      place.textContent = "This chart could not be drawn; its numbers are in the table below.";
      console.error(place.id, error);
    }
  }
  document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
}
for (const query of [dark, small]) query.addEventListener("change", drawAll);
drawAll();
