"use strict";
(() => {
  // Each chart is drawn already. Where scripts run and there is room, one that answers the pointer
  // takes its place as soon as it is in sight.
  const specs = JSON.parse(document.getElementById("data").textContent).charts;
  const options = {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  };

  async function enliven(plot) {
    const place = document.createElement("div");
    try {
      await vegaEmbed(place, specs[plot.dataset.chart], options);
      plot.replaceChildren(place);
      plot.dataset.live = "true";
    } catch (error) {
      console.warn(`${plot.dataset.chart} stays as it is: ${error}`);
    }
  }

  const watch = new IntersectionObserver((seen) => {
    for (const one of seen) {
      if (!one.isIntersecting) continue;
      watch.unobserve(one.target);
      enliven(one.target);
    }
  }, { rootMargin: "200px" });
  document.querySelectorAll(".plot.wide").forEach((plot) => watch.observe(plot));
})();
