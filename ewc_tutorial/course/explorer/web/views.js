// The four linked views: what a chart shows of the stored landscape and of what was trained here.
//
// state: {chosen, results, curves, landscape, steps}, where `results` are those with the present
// settings by λ, `curves` those to be shown and `steps` the number of training steps per task.
"use strict";

const NAMES = "ABCDE";
const DASHES = ["", "7 3", "7 2 1 2", "2 2", "9 2 2 2 2 2"];
const GHOST = { color: "pale", dash: "4 3", band: false };
const COVERED = "Covered until you uncover the answer";

function drawViews(state) {
  drawCurves(state);
  const ofAccuracy = { domain: [0, 1], ticks: ticksUpTo(1), title: "final test accuracy" };
  drawAgainstLambda("against", state, "Final test accuracy", ofAccuracy, [
    ["average", "average", "ink", ""], ["earlier tasks", "old", "t0", "7 3"],
    ["last task", "latest", "t1", "2 2"],
  ]);
  drawFrontier(state);
  const { landscape } = state, shown = trained(state);
  // A training that diverged has no finite movement, and leaves the others their scale.
  const moves = shown.flatMap(({ important, other }) => [important, other]).filter(Number.isFinite);
  const top = 1.08 * Math.max(...landscape.important, ...moves);
  const ofMoves = { domain: [0, top], ticks: ticksUpTo(top), title: "movement since A (RMS)" };
  drawAgainstLambda("moves", state, "Root mean square movement of the weights since A", ofMoves, [
    ["important tenth", "important", "t2", ""], ["all other weights", "other", "t3", "7 3"],
  ]);
}

// What was trained here, by ascending λ, if it may be seen already.
function trained({ chosen, results }) {
  return chosen.shown ? [...results.values()].sort((a, b) => a.lam - b.lam) : [];
}

function drawCurves({ chosen, curves, landscape, steps }) {
  const end = Math.max(steps * chosen.tasks, landscape.steps.at(-1));
  const at = nearest(landscape.lambdas, curves.lam), stored = landscape.curves[at];
  const series = landscape.tasks.map((_, t) => ({
    ...GHOST, name: t ? "" : `stored, λ = ${lambdaText(landscape.lambdas[at])}`,
    points: landscape.steps.map((step, e) => [step, stored[e][t]])
      .filter(([step]) => step >= (t ? landscape.boundaries[t - 1] : 0)),
  }));
  const words = [], tasks = Array.from({ length: chosen.tasks }, (_, t) => t);
  for (const t of tasks) {
    const points = curves.points.filter(({ step }) => step >= t * steps).map(point => {
      const values = point.accuracies.map(a => a[t]), m = mean(values), e = standardError(values);
      return [point.step, m, m - e, m + e];
    });
    series.push({ name: `task ${NAMES[t]}`, color: `t${t}`, dash: DASHES[t], points });
    if (points.length) words.push(`task ${NAMES[t]} ${points.at(-1)[1].toFixed(2)}`);
  }
  drawChart(element("curves"), {
    alt: `Test accuracy against training steps at λ = ${lambdaText(curves.lam)}; at present ` +
      `${words.join(", ") || "nothing is trained"}.`,
    x: { domain: [0, end], ticks: ticksUpTo(end), title: "training step" },
    y: { domain: [0, 1], ticks: ticksUpTo(1), title: "test accuracy" },
    series,
    rules: tasks.slice(1).map(t => ({ x: t * steps })),
    above: tasks.map(t => ({ x: (t + 0.5) * steps, words: `train ${NAMES[t]}` })),
  });
}

// Lines [name, key of a result, colour, dash] against λ; of the first the stored one stands behind.
function drawAgainstLambda(id, state, what, y, lines) {
  const { chosen, results, landscape } = state, now = results.get(chosen.lam);
  const shown = trained(state), spots = [], series = [];
  if (chosen.shown)
    series.push({
      ...GHOST, name: `${lines[0][0]}, stored`,
      points: landscape.lambdas.map((lam, i) => [lambdaPosition(lam), landscape[lines[0][1]][i]]),
    });
  for (const [name, key, color, dash] of lines) {
    const points = shown.filter(r => Number.isFinite(r[key]))
      .map(r => [lambdaPosition(r.lam), r[key]]);
    series.push({ name, color, dash, points, dots: true });
    // The first line is the most important: its spot comes last, on top.
    if (chosen.shown && Number.isFinite(now?.[key]))
      spots.unshift([lambdaPosition(now.lam), now[key], color]);
  }
  const said = now ? ` At λ = ${lambdaText(now.lam)}: ` +
    lines.map(([name, key]) => `${name} ${now[key].toPrecision(2)}`).join(", ") + "." : "";
  drawChart(element(id), {
    alt: chosen.shown ? `${what} against λ, ${countText(shown.length, "value")} trained.${said}`
      : `${what} against λ: ${COVERED}.`,
    x: lambdaAxis(), y, series, spots, rules: lambdaRules(chosen, id === "against"),
    note: chosen.shown ? "" : COVERED,
  });
}

function lambdaAxis() {
  const ticks = [-2, -1, 0, 1, 2, 3, 4, 5, 6].map(e => [e, e % 2 ? "" : powerOfTen(e)]);
  return { domain: [-3.15, 6.15], ticks: [[-3, "0"], ...ticks], title: "λ" };
}

// They are named in one of the charts only; in the other their names would cover the lines.
function lambdaRules({ lam, guess, shown }, named) {
  const rules = [{ x: 0, words: named ? "Bayes: N_A/N_B = 1" : "" }];
  const at = shown ? guess : lam;
  if (at !== null)
    rules.push({
      x: lambdaPosition(at), words: named ? "your guess" : "", className: "guess", row: 1,
    });
  if (shown) rules.push({ x: lambdaPosition(lam), className: "now" });
  return rules;
}

function drawFrontier(state) {
  const { chosen, results, landscape } = state, now = results.get(chosen.lam);
  const path = trained(state).map(r => [r.old, r.latest]);
  const ghost = landscape.old.map((old, i) => [old, landscape.latest[i]]);
  const axis = (k, title) => {
    const lowest = Math.min(...ghost.concat(path).map(point => point[k]));
    const low = Math.max(0, Math.floor(20 * lowest - 0.5) / 20);
    return { domain: [low, 1], ticks: ticksUpTo(1, low), title };
  };
  const said = now ? ` At λ = ${lambdaText(now.lam)}: ${now.latest.toFixed(2)} against ` +
    `${now.old.toFixed(2)}.` : "";
  drawChart(element("frontier"), {
    alt: "Accuracy on the last task against that on the earlier tasks" +
      (chosen.shown ? `, a point for each λ.${said}` : `: ${COVERED}.`),
    x: axis(0, "accuracy on the earlier tasks"), y: axis(1, "accuracy on the last task"),
    series: !chosen.shown ? [] : [
      { ...GHOST, name: `stored, λ = 0 to ${lambdaText(landscape.lambdas.at(-1))}`, points: ghost },
      { name: "trained here", color: "ink", points: path, dots: true },
    ],
    spots: chosen.shown && now ? [[now.old, now.latest, "t4"]] : [],
    note: chosen.shown ? "" : COVERED,
  });
}
