"""The λ lab's picture as a widget of a notebook."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets
import vl_convert

#: The slider stands above the views; its number is an index, so the picture's title says λ instead.
#: (The class is named twice to count for more than vegaEmbed's own style.)
CSS = """
.vega-embed.vega-embed {
  display: flex; flex-direction: column; align-items: flex-start; overflow: visible;
}
.vega-bindings { order: -1; font: 13px sans-serif; margin: 0 0 6px 4px; }
.vega-bind { margin: 2px 0; }
.vega-bind label { display: flex; align-items: center; gap: 8px; }
.vega-bind-name { min-width: 210px; }
.vega-bind input[type=range] { width: 420px; max-width: 60vw; }
.vega-bind input[type=range] + * { display: none; }
/* As long as the answer is covered, turning λ shows nothing: it is to look as if it waited. */
.vega-bindings:has(input[name=shown]:not(:checked)) .vega-bind:has(input[name=k]) {
  opacity: 0.45;
}
"""

#: For vegaEmbed. Canvas is redrawn in milliseconds, SVG is not.
OPTIONS = '{ mode: "vega-lite", renderer: "canvas", actions: false }'

#: The widget's front end; vl-convert adds Vega to it.
_SCRIPT = """
async function render({ model, el }) {
  const chart = await vegaEmbed(el, structuredClone(model.get("spec")), OPTIONS);
  // In JupyterLab the arrow keys would otherwise go to the notebook, not to the slider.
  for (const input of el.querySelectorAll("input"))
    input.setAttribute("data-lm-suppress-shortcuts", "true");
  // The kernel hears of k once it rests, so that a busy one cannot push the slider back.
  let rest;
  chart.view.addSignalListener("k", (name, k) => {
    clearTimeout(rest);
    rest = setTimeout(() => { model.set("k", k); model.save_changes(); }, 250);
  });
  model.on("change:k", () => {
    const k = model.get("k");
    if (chart.view.signal("k") !== k) chart.view.signal("k", k).runAsync();
  });
  return () => { clearTimeout(rest); chart.finalize(); };
}
export default { render };
"""


class LabChart(anywidget.AnyWidget):
    """A chart of ``chart.py`` as a widget, which brings its own JavaScript.

    Attributes:
        spec: the Vega-Lite specification.
        k: the index that the slider points at.
    """

    spec = traitlets.Dict().tag(sync=True)
    k = traitlets.Int().tag(sync=True)

    _esm = ""  # made with the first chart: it takes a second

    def __init__(self, spec: dict[str, Any]) -> None:
        if not LabChart._esm:
            LabChart._esm = vl_convert.javascript_bundle(_SCRIPT.replace("OPTIONS", OPTIONS))
        super().__init__(spec=spec)
