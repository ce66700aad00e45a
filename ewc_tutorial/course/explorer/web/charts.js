// Small line charts as SVG, drawn anew whenever something changes: well below a millisecond each.
"use strict";

const MARGIN = { left: 46, right: 12, top: 22, bottom: 40 };

// Draw into a figure's <div>, and its legend into the list after it.
//
// x, y: {domain, ticks: [[value, text], …], title}; series: {name, color, dash, dots, band, points:
// [[x, y, low, high], …]}; rules: vertical lines {x, words, className, row}; above: words {x, words}
// over the picture; spots: larger dots [x, y, color]; alt: what stands for the picture.
function drawChart(host, { alt, x, y, series, rules = [], spots = [], note = "", above = [] }) {
  const width = Math.max(240, host.clientWidth);
  const height = Math.round(Math.min(290, 110 + width / 3));
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const scale = ({ domain: [low, high] }, from, to) => value =>
    Math.round(10 * (from + (to - from) * (value - low) / (high - low || 1))) / 10;
  const X = scale(x, MARGIN.left, right), Y = scale(y, bottom, MARGIN.top);
  const text = (px, py, words, more = "") => `<text x="${px}" y="${py}" ${more}>${words}</text>`;
  const parts = [];
  for (const [value, words] of y.ticks)
    parts.push(`<path class="grid" d="M${MARGIN.left},${Y(value)}H${right}"/>`,
      text(MARGIN.left - 6, Y(value) + 4, words, 'text-anchor="end"'));
  for (const [value, words] of x.ticks)
    parts.push(`<path class="tick" d="M${X(value)},${bottom}v4"/>`,
      text(X(value), bottom + 16, words, 'text-anchor="middle"'));
  parts.push(`<path class="axis" d="M${MARGIN.left},${MARGIN.top}V${bottom}H${right}"/>`);
  const middle = (MARGIN.top + bottom) / 2;
  parts.push(text((MARGIN.left + right) / 2, height - 6, x.title, 'text-anchor="middle"'),
    text(12, middle, y.title, `text-anchor="middle" transform="rotate(-90 12 ${middle})"`));
  for (const { x: at, words } of above)
    parts.push(text(X(at), MARGIN.top - 8, words, 'text-anchor="middle"'));
  for (const { x: at, words = "", className = "", row = 0 } of rules) {
    const left = X(at) > (MARGIN.left + right) / 2; // words where there is room
    parts.push(`<path class="rule ${className}" d="M${X(at)},${MARGIN.top}V${bottom}"/>`,
      text(X(at) + (left ? -5 : 5), bottom - 7 - 14 * row, words,
        `class="${className}" text-anchor="${left ? "end" : "start"}"`));
  }
  const line = (points, k = 1) => points.map(p => `${X(p[0])},${Y(p[k])}`);
  for (const { color, dash = "", points, dots, band = true } of series) {
    if (!points.length) continue;
    if (band && points.some(p => p.length > 2))
      parts.push(`<path class="band" fill="var(--${color})" d="M` +
        [...line(points, 2), ...line(points, 3).reverse()].join("L") + 'Z"/>');
    parts.push(`<path class="line" stroke="var(--${color})" stroke-dasharray="${dash}" d="M` +
      line(points).join("L") + '"/>');
    if (dots)
      for (const p of points)
        parts.push(`<circle cx="${X(p[0])}" cy="${Y(p[1])}" r="3" fill="var(--${color})"/>`);
  }
  for (const [px, py, color] of spots)
    parts.push(`<circle class="spot" cx="${X(px)}" cy="${Y(py)}" r="6" fill="var(--${color})"/>`);
  if (note)
    parts.push(text((MARGIN.left + right) / 2, middle, note, 'class="note" text-anchor="middle"'));
  host.innerHTML = `<svg role="img" width="${width}" height="${height}">` +
    `<title>${alt}</title>${parts.join("")}</svg>`;
  host.nextElementSibling.innerHTML = series.filter(s => s.name).map(({ name, color, dash = "" }) =>
    `<li><svg width="30" height="10" aria-hidden="true"><path class="line" d="M1,5H29" ` +
    `stroke="var(--${color})" stroke-dasharray="${dash}"/></svg> ${name}</li>`).join("");
}

// Some five ticks between 0 and top, at steps of 1, 2 or 5.
function ticksUpTo(top, from = 0) {
  const rough = (top - from) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find(times => times * unit >= rough);
  const ticks = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= top + 1e-9; k++)
    ticks.push([k * step, Number((k * step).toPrecision(6)).toLocaleString("en")]);
  return ticks;
}
