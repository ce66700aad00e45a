// The page: its controls, what it shows, and what it says.
"use strict";

const DELAY = 200; // ms that the controls rest before a training begins

const { images: stored, landscape, defaults } = JSON.parse(element("data").textContent);
const images = {
  pixels: fromBase64(stored.pixels), labels: fromBase64(stored.labels), train: stored.train,
};
const pool = new Pool([element("engine").textContent, element("worker").textContent], images);
const LIMITS = { tasks: [2, 5], width: [2, 128], lr: [0.001, 2], epochs: [1, 50], seeds: [1, 20] };

// What the reader has chosen; `shown` says whether the answer is uncovered.
const chosen = { lam: 1, guess: null, ...defaults };
let results = new Map(); // what was trained with the present settings, by λ
let curves = { lam: 0, points: [] }; // those that are shown
let queue = []; // the λ that are still to be trained
let timer;
let drawing = false;

function element(id) { return document.getElementById(id); }

// --- training ---------------------------------------------------------------------------------

// Train at these λ, one after the other, once the controls have rested.
function train(lambdas) {
  stop("");
  queue = lambdas;
  busy(true);
  say("Training …", false);
  timer = setTimeout(trainQueue, DELAY);
}

async function trainQueue() {
  const settings = settingsOf(chosen, images), total = settings.steps * settings.tasks;
  const mine = queue; // a training that begins later has another one
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
      mine.length === 1);
    redraw();
  }
  if (queue !== mine) return;
  busy(false);
  if (mine.length === 1 || !results.has(mine.at(-1))) return;
  say(`${mine.length} values of λ trained. Best: ${readout(best(), chosen.seeds)}.`);
  if (results.has(chosen.lam)) show(chosen.lam);
}

function best() { return [...results.values()].reduce((a, b) => (b.average > a.average ? b : a)); }

// What is worth saying after the numbers.
function remarks(steps) {
  const learned = curves.points.find(({ step }) => step === steps).accuracies.map(a => a[0]);
  if (mean(learned) < 0.3) return "Task A was not learned: take a lower η, or more epochs.";
  return results.size < 2 ? ""
    : `Best of the ${results.size} λ trained: ${lambdaText(best().lam)}.`;
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

function draw() {
  drawing = false;
  drawViews({ chosen, results, curves, landscape, steps: settingsOf(chosen, images).steps });
}

// Draw at most once per frame, however often something changes.
function redraw() {
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
}

// --- controls ---------------------------------------------------------------------------------

// The slider: 0, then tenths of a decade from 0.01 to a million.
function lambdaAt(position) {
  return position ? Number((10 ** (position / 10 - 2.1)).toPrecision(6)) : 0;
}

function positionOf(lam) {
  return lam > 0 ? Math.max(1, Math.min(81, Math.round(10 * Math.log10(lam) + 21))) : 0;
}

// A comma divides thousands, as where the page writes a λ itself, or else stands for the point.
function withoutCommas(text) {
  return /^\s*[1-9]\d{0,2}(,\d{3})+(\.\d*)?\s*$/.test(text)
    ? text.replaceAll(",", "") : text.replace(",", ".");
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
  element("lam").value = lam;
  element("turn-label").textContent = shown
    ? "3. Turn λ: networks train at each value (arrow keys, Home, End)"
    : "1. Set λ to your guess of the best (arrow keys, Home, End)";
  element("uncover").hidden = shown;
  element("all").hidden = !shown;
  for (const name of [...Object.keys(LIMITS), "curvature"])
    if (element(name) !== document.activeElement) element(name).value = chosen[name];
  const kept = Object.entries(chosen).filter(([, value]) => value !== null);
  element("link").href = "#" + new URLSearchParams(kept);
  try {
    history.replaceState(null, "", element("link").href);
  } catch {
    // In a frame without an address of its own; the link is there all the same.
  }
}

// Take over what an address says, as far as it can be.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, [low, high]] of Object.entries({ ...LIMITS, lam: [0, 1e6], guess: [0, 1e6] })) {
    const value = Number(given.get(name));
    const whole = ["lr", "lam", "guess"].includes(name) || Number.isInteger(value);
    if (given.get(name) && whole && value >= low && value <= high) chosen[name] = value;
  }
  if (Object.hasOwn(CURVATURES, given.get("curvature"))) chosen.curvature = given.get("curvature");
  if (given.has("shown")) chosen.shown = given.get("shown") === "true";
  const guessed = chosen.shown && chosen.guess !== null;
  element("verdict").textContent = guessed ? verdict(chosen.guess, landscape) : "";
}

element("turn").addEventListener("input", ({ target }) =>
  setLambda(lambdaAt(Number(target.value))));
element("lam").addEventListener("change", ({ target }) => {
  const lam = Number(withoutCommas(target.value));
  const right = target.value.trim() !== "" && lam >= 0 && lam <= 1e6;
  if (right) setLambda(lam);
  else {
    say(`λ must be a number from 0 to a million, not “${target.value}”.`);
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
draw();
performance.mark("picture");

// For tests and the curious: train from given weights and batches, and read the weights back.
window.lab = {
  train: (...all) => pool.train(...all),
  permutedTasks: n => permutedTasks(images, n),
};
