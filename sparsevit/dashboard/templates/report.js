"use strict";
// Draws every figure of the page, in the page's own ink, and again at a width that fits when the page is printed.
(() => {
  const PRINT_WIDTH = 660; // px: A4 and Letter between the margins
  const NARROW = 480; // px: a phone held upright
  const config = {
    responsive: true,
    displaylogo: false,
    // Where nothing hovers, as on a phone, the buttons would stay and cover the legend.
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  const plots = [...document.querySelectorAll(".plot")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const colours = (ink) => ({ "font.color": ink });

  for (const plot of plots) {
    const figure = JSON.parse(document.getElementById(`figure-${plot.dataset.figure}`).textContent);
    figure.layout.font.color = ink();
    if (plot.clientWidth < NARROW) {
      // Labels would lie over the axis and each other; a tap shows them.
      for (const trace of figure.data) trace.mode = trace.mode?.replace("+text", "");
    }
    Plotly.newPlot(plot, figure.data, figure.layout, config);
  }
  const redraw = (change) => plots.forEach((plot) => Plotly.relayout(plot, change));
  dark.addEventListener("change", () => redraw(colours(ink())));
  window.addEventListener("beforeprint", () => redraw({ ...colours("#1d2329"), width: PRINT_WIDTH }));
  window.addEventListener("afterprint", () => redraw({ ...colours(ink()), width: null, autosize: true }));
})();
