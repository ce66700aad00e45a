// The page: its controls, what it shows, and what it says.
"use strict";

const DASHES = ["", "7 3", "7 2 1 2", "2 2", "9 2 2 2 2 2"];
const GHOST = { color: "pale", dash: "4 3", band: false };
const DELAY = 200; // ms that the controls rest before a training begins

const { images: stored, landscape, defaults } = JSON.parse(element("data").textContent);
const images = {
  pixels: fromBase64(stored.pixels), labels: fromBase64(stored.labels), train: stored.train,
};
const pool = new Pool([element("engine").textContent, element("worker").textContent], images);
const LIMITS = { tasks: [2, 5], width: [2, 128], lr: [0.001, 2], epochs: [1, 50], seeds: [1, 20] };

// What the reader has chosen; `shown` says whether the answer is uncovered.
const chosen = { ...defaults, lam: 1, guess: null, shown: false };
let results = new Map(); // what was trained with the present settings, by λ
let curves = { lam: 0, points: [] }; // those that are shown
let queue = []; // the λ that are still to be trained
let timer;

function element(id) { return document.getElementById(id); }

// --- training ---------------------------------------------------------------------------------

function settingsOf({ tasks, width, lr, epochs, curvature }) {
  return {
    tasks, lr, curvature, batch: 32, evaluations: 10,
    sizes: [PIXELS, width, width, 10], steps: epochs * Math.floor(images.train / 32),
  };
}

// Train at these λ, one after the other, once the controls have rested.
function train(lambdas) {
  stop("");
  queue = lambdas;
  busy(true);
  say("Training …", false);
  timer = setTimeout(trainQueue, DELAY);
}

async function trainQueue() {
  const settings = settingsOf(chosen), mine = queue, total = settings.steps * settings.tasks;
  const starts = Array.from({ length: chosen.seeds }, (_, seed) => ({ seed }));
  for (const [i, lam] of mine.entries()) {
    const began = performance.now();
    let found;
    say(`Training ${countText(chosen.seeds, "network")} at λ = ${lambdaText(lam)} …`, false);
    try {
      found = await pool.train(settings, starts, lam, now => {
        if (curves.points.length === 0) performance.mark("result");
        curves = { lam, points: shownPoints(now) };
        element("progress").value = (i + curves.points.at(-1).step / total) / mine.length;
        redraw();
      });
    } catch (error) {
      say(`The training failed: ${error.message}`);
    }
    if (!found || queue !== mine) break;
    results.set(lam, summary(lam, found));
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    say(`${readout(results.get(lam), chosen.seeds)}. ` +
      `${countText(chosen.seeds, "network")} in ${seconds} s. ${remarks(settings.steps)}`,
      i === mine.length - 1);
    redraw();
  }
  if (queue !== mine) return;
  busy(false);
  if (mine.length > 1 && results.has(chosen.lam)) show(chosen.lam);
}

// What is worth saying after the numbers.
function remarks(steps) {
  const learned = curves.points.find(({ step }) => step === steps).accuracies.map(a => a[0]);
  if (mean(learned) < 0.3) return "Task A was not learned: take a lower η, or more epochs.";
  const best = [...results.values()].reduce((a, b) => (b.average > a.average ? b : a));
  return results.size < 2 ? ""
    : `Best of the ${results.size} λ trained: ${lambdaText(best.lam)}.`;
}

// Show what has been trained already.
function show(lam) {
  curves = results.get(lam).curves;
  redraw();
}

function stop(words = "Stopped.") {
  if (element("stop").getAttribute("aria-disabled") === "true") return;
  clearTimeout(timer);
  queue = [];
  pool.stop();
  busy(false);
  say(words);
}

function busy(on) {
  element("stop").setAttribute("aria-disabled", String(!on));
  element("progress").style.visibility = on ? "visible" : "hidden";
  element("progress").value = 0;
}

// What is said to everyone; what is only shown is not announced by a screen reader.
function say(words, aloud = true) {
  element("status").setAttribute("aria-live", aloud ? "polite" : "off");
  element("status").textContent = words;
}

// Steps that every member has reached, with the accuracies of all of them.
function shownPoints(of) {
  const shortest = Math.min(...of.map(({ points }) => points.length));
  return Array.from({ length: shortest }, (_, e) => ({
    step: of[0].points[e].step, accuracies: of.map(({ points }) => points[e].accuracy),
  }));
}

function summary(lam, found) {
  const last = found.map(({ points }) => points.at(-1).accuracy);
  const averages = last.map(mean);
  return {
    lam, curves: { lam, points: shownPoints(found) }, average: mean(averages), error: standardError(averages),
    old: mean(last.map(values => mean(values.slice(0, -1)))),
    latest: mean(last.map(values => values.at(-1))),
    important: mean(found.map(m => m.moved[0])), other: mean(found.map(m => m.moved[1])),
  };
}

// --- pictures ---------------------------------------------------------------------------------

let drawing = false;

// Draw at most once per frame, however often something changes.
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawAll();
  });
}

function nearestStored(lam) {
  const distances = landscape.lambdas.map(l =>
    Math.abs(lambdaPosition(l) - lambdaPosition(lam)));
  return distances.indexOf(Math.min(...distances));
}

function drawAll() {
  drawCurves();
  const trained = [...results.values()].sort((a, b) => a.lam - b.lam);
  const shown = chosen.shown ? trained : [];
  drawAgainst(shown);
  drawFrontier(shown);
  drawMoves(shown);
}

function drawCurves() {
  const steps = settingsOf(chosen).steps, end = Math.max(steps * chosen.tasks, landscape.steps.at(-1));
  const at = nearestStored(curves.lam), series = [];
  landscape.tasks.forEach((name, t) => series.push({
    ...GHOST, name: t ? "" : `stored, λ = ${lambdaText(landscape.lambdas[at])}`,
    points: landscape.steps.map((step, e) => [step, landscape.curves[at][e][t]])
      .filter(([step]) => step >= (t ? landscape.boundaries[t - 1] : 0)),
  }));
  const words = [];
  for (let t = 0; t < chosen.tasks; t++) {
    const name = "ABCDE"[t], curve = curves.points.filter(({ step }) => step >= t * steps).map(point => {
      const values = point.accuracies.map(a => a[t]), m = mean(values), e = standardError(values);
      return [point.step, m, m - e, m + e];
    });
    series.push({ name: `task ${name}`, color: `t${t}`, dash: DASHES[t], points: curve });
    if (curve.length) words.push(`task ${name} ${curve.at(-1)[1].toFixed(2)}`);
  }
  drawChart(element("curves"), {
    alt: `Test accuracy against training steps at λ = ${lambdaText(curves.lam)}; at present ` +
      `${words.join(", ") || "nothing is trained"}.`,
    x: { domain: [0, end], ticks: ticksUpTo(end), title: "training step" },
    y: { domain: [0, 1], ticks: ticksUpTo(1), title: "test accuracy" },
    series,
    rules: Array.from({ length: chosen.tasks - 1 }, (_, t) => ({ x: (t + 1) * steps })),
    above: Array.from({ length: chosen.tasks }, (_, t) => ({
      x: (t + 0.5) * steps, words: `train ${"ABCDE"[t]}`,
    })),
  });
}

function lambdaAxis() {
  const ticks = [-2, -1, 0, 1, 2, 3, 4, 5, 6].map(e => [e, e % 2 ? "" : powerOfTen(e)]);
  return { domain: [-3.15, 6.15], ticks: [[-3, "0"], ...ticks], title: "λ" };
}

// Words stand in one of the charts only; in the other they would cover the lines.
function lambdaRules(named) {
  const rules = [{ x: 0, words: named ? "Bayes: N_A/N_B = 1" : "" }];
  const guess = chosen.shown ? chosen.guess : chosen.lam;
  if (guess !== null)
    rules.push({ x: lambdaPosition(guess), words: named ? "your guess" : "", className: "guess", row: 1 });
  if (chosen.shown) rules.push({ x: lambdaPosition(chosen.lam), className: "now" });
  return rules;
}

const COVERED = "Covered until you uncover the answer";

// A chart against λ: lines [name, key of a result, colour, dash] over the stored `ghost`.
function drawLambdaChart(id, shown, lines, ghost, y, what) {
  const spots = [], now = results.get(chosen.lam);
  const series = chosen.shown ? [{
    ...GHOST, name: `${lines[0][0]}, stored`,
    points: landscape.lambdas.map((lam, i) => [lambdaPosition(lam), ghost[i]]),
  }] : [];
  for (const [name, key, color, dash] of lines) {
    const points = shown.map(r => [lambdaPosition(r.lam), r[key]]);
    series.push({ name, color, dash, points, dots: true });
    // The first line is the most important: its spot comes last, on top.
    if (chosen.shown && now) spots.unshift([lambdaPosition(now.lam), now[key], color]);
  }
  const said = now ? ` At λ = ${lambdaText(now.lam)}: ` +
    lines.map(([name, key]) => `${name} ${now[key].toPrecision(2)}`).join(", ") + "." : "";
  drawChart(element(id), {
    alt: chosen.shown ? `${what} against λ, ${countText(shown.length, "value")} trained.${said}`
      : `${what} against λ: ${COVERED}.`,
    x: lambdaAxis(), y, series, spots, rules: lambdaRules(id === "against"), note: chosen.shown ? "" : COVERED,
  });
}

function drawAgainst(shown) {
  drawLambdaChart("against", shown, [
    ["average", "average", "ink", ""], ["earlier tasks", "old", "t0", "7 3"],
    ["last task", "latest", "t1", "2 2"],
  ], landscape.average, { domain: [0, 1], ticks: ticksUpTo(1), title: "final test accuracy" },
  "Final test accuracy");
}

function drawMoves(shown) {
  const top = 1.08 * Math.max(...landscape.important, ...shown.flatMap(r => [r.important, r.other]));
  drawLambdaChart("moves", shown, [
    ["important tenth", "important", "t2", ""], ["all other weights", "other", "t3", "7 3"],
  ], landscape.important, { domain: [0, top], ticks: ticksUpTo(top), title: "movement since A (RMS)" },
  "Root mean square movement of the weights since task A");
}

function drawFrontier(shown) {
  const path = shown.map(r => [r.old, r.latest]), now = results.get(chosen.lam);
  const ghost = landscape.old.map((old, i) => [old, landscape.latest[i]]);
  const axis = (k, title) => {
    const low = Math.max(0, Math.floor(20 * Math.min(...ghost.concat(path).map(p => p[k])) - 0.5) / 20);
    return { domain: [low, 1], ticks: ticksUpTo(1, low), title };
  };
  drawChart(element("frontier"), {
    alt: !chosen.shown ? `Accuracy on the last task against the earlier tasks: ${COVERED}.`
      : `Accuracy on the last task against that on the earlier tasks, a point per λ.` +
        (now ? ` At λ = ${lambdaText(now.lam)}: ${now.latest.toFixed(2)} against ` +
          `${now.old.toFixed(2)}.` : ""),
    x: axis(0, "accuracy on earlier tasks: stability"), y: axis(1, "on the last task: plasticity"),
    series: !chosen.shown ? [] : [
      { ...GHOST, name: `stored, λ = 0 to ${lambdaText(landscape.lambdas.at(-1))}`, points: ghost },
      { name: "trained here", color: "ink", points: path, dots: true },
    ],
    spots: chosen.shown && now ? [[now.old, now.latest, "t4"]] : [],
    note: chosen.shown ? "" : COVERED,
  });
}

// --- controls ---------------------------------------------------------------------------------

// The slider: 0, then tenths of a decade from 0.01 to a million.
function lambdaAt(position) {
  return position ? Number((10 ** (position / 10 - 2.1)).toPrecision(6)) : 0;
}

function positionOf(lam) {
  return lam > 0 ? Math.max(1, Math.min(81, Math.round(10 * Math.log10(lam) + 21))) : 0;
}

function setLambda(lam) {
  chosen.lam = lam;
  showControls();
  redraw();
  if (!chosen.shown) return;
  stop("");
  if (!results.has(lam)) return train([lam]);
  show(lam);
  say(`${readout(results.get(lam), chosen.seeds)}.`);
}

// The settings have changed: what was trained with the old ones is gone.
function restart() {
  results = new Map();
  curves = { lam: 0, points: [] };
  showControls();
  redraw();
  train([chosen.shown ? chosen.lam : 0]);
}

function uncover() {
  [chosen.guess, chosen.shown] = [chosen.lam, true];
  element("verdict").textContent = verdict(chosen.guess, landscape);
  setLambda(chosen.lam);
  element("turn").focus(); // the button is gone
}

// Show in the controls and in the address what is chosen.
function showControls() {
  const { lam, shown } = chosen, slider = element("turn");
  slider.value = positionOf(lam);
  slider.setAttribute("aria-valuetext", `λ = ${lambdaText(lam)}`);
  if (Number(element("lam").value) !== lam || element("lam").value === "") element("lam").value = lam;
  element("turn-label").textContent = shown
    ? "3. Turn λ: networks train at each value (arrow keys, Home, End)"
    : "1. Set λ to your guess of the best (arrow keys, Home, End)";
  element("uncover").hidden = shown;
  element("all").hidden = !shown;
  for (const name of [...Object.keys(LIMITS), "curvature"])
    if (element(name) !== document.activeElement) element(name).value = chosen[name];
  const kept = Object.entries(chosen).filter(([, value]) => value !== null);
  element("link").href = "#" + new URLSearchParams(kept);
  history.replaceState(null, "", element("link").href);
}

// Take over what an address says, as far as it can be.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, [low, high]] of Object.entries({ ...LIMITS, lam: [0, 1e9], guess: [0, 1e9] })) {
    const value = Number(given.get(name));
    const whole = ["lr", "lam", "guess"].includes(name) || Number.isInteger(value);
    if (given.get(name) && whole && value >= low && value <= high) chosen[name] = value;
  }
  if (given.get("curvature") in CURVATURES) chosen.curvature = given.get("curvature");
  if (given.has("shown")) chosen.shown = given.get("shown") === "true";
  if (chosen.shown && chosen.guess !== null)
    element("verdict").textContent = verdict(chosen.guess, landscape);
}

element("turn").addEventListener("input", ({ target }) => setLambda(lambdaAt(Number(target.value))));
element("lam").addEventListener("change", ({ target }) => {
  const lam = Number(target.value.replace(",", "."));
  const right = target.value.trim() !== "" && lam >= 0 && lam <= 1e9;
  if (right) setLambda(lam);
  else {
    say(`λ must be a number from 0 to a thousand million, not “${target.value}”.`);
    target.value = chosen.lam;
  }
});
for (const name of Object.keys(LIMITS))
  element(name).addEventListener("input", ({ target }) => {
    const value = target.valueAsNumber;
    if (!target.checkValidity() || Number.isNaN(value)) {
      const [low, high] = LIMITS[name];
      return say(`${target.labels[0].textContent.trim()} must be between ${low} and ${high}.`);
    }
    chosen[name] = value;
    restart();
  });
element("curvature").addEventListener("change", ({ target }) => {
  chosen.curvature = target.value;
  restart();
});
element("uncover").addEventListener("click", uncover);
element("all").addEventListener("click", () => train([...landscape.lambdas]));
element("stop").addEventListener("click", () => stop());
element("controls").addEventListener("submit", event => event.preventDefault());
addEventListener("resize", redraw);
addEventListener("hashchange", () => {
  readAddress();
  restart();
});

readAddress();
restart();
drawAll();
performance.mark("picture");

// For tests and the curious: train from given weights and batches, and read the weights back.
window.lab = { train: (...all) => pool.train(...all), permutedTasks: n => permutedTasks(images, n) };
