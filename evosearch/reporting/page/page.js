"use strict";
(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var boxes = [];

  function colors(layout, printing) {
    var style = getComputedStyle(document.documentElement);
    var ink = printing ? "#000" : style.getPropertyValue("--ink").trim();
    var grid = printing ? "#ddd" : style.getPropertyValue("--grid").trim();
    var changed = { "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font.color": ink };
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) {
        changed[key + ".gridcolor"] = grid;
        changed[key + ".linecolor"] = grid;
      }
    });
    return changed;
  }

  function draw(element) {
    var figure = JSON.parse(element.textContent);
    var box = document.getElementById(element.dataset.box);
    figure.layout.font = { size: 12, family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif" };
    figure.layout.hoverlabel = { namelength: -1 };
    figure.layout.autosize = true;
    figure.layout.dragmode = false;
    var options = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: false };
    Plotly.newPlot(box, figure.data, figure.layout, options).then(function () {
      return Plotly.relayout(box, colors(figure.layout, false));
    });
    boxes.push({ box: box, layout: figure.layout });
  }

  function all(printing, width) {
    boxes.forEach(function (one) {
      var changed = colors(one.layout, printing);
      changed.width = width;
      changed.autosize = width === null;
      Plotly.relayout(one.box, changed);
    });
  }

  document.querySelectorAll("script.figure").forEach(draw);
  dark.addEventListener("change", function () { all(false, null); });
  window.addEventListener("beforeprint", function () { all(true, 680); });
  window.addEventListener("afterprint", function () { all(false, null); });
  document.querySelectorAll("button.copy").forEach(function (button) {
    if (!navigator.clipboard) { return; }
    button.hidden = false;
    button.addEventListener("click", function () {
      var text = button.closest("figure").querySelector("pre").textContent;
      navigator.clipboard.writeText(text).then(function () { button.textContent = "Copied"; });
    });
  });
})();
