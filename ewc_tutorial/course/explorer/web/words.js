// Numbers and sentences of the page; the verdict is that of ewc_tutorial.course.explorer.words.
"use strict";

// Two digits, as people write them: 0.032, 3,200.
function lambdaText(lam) {
  return Number(lam.toPrecision(2)).toLocaleString("en", { maximumFractionDigits: 12 });
}

// Where λ stands on an axis: log₁₀ λ, and λ = 0 a decade left of 0.01, the least on the slider.
function lambdaPosition(lam) { return lam > 0 ? Math.max(-2.8, Math.log10(lam)) : -3; }

// The index of the λ that is nearest on the axis.
function nearest(lambdas, lam) {
  const distances = lambdas.map(l => Math.abs(lambdaPosition(l) - lambdaPosition(lam)));
  return distances.indexOf(Math.min(...distances));
}

function powerOfTen(exponent) {
  if (exponent >= -2 && exponent <= 3) return (10 ** exponent).toLocaleString("en");
  return "10" + [...String(exponent)].map(c => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
}

function mean(values) { return values.reduce((sum, v) => sum + v, 0) / values.length; }

// The standard error of the mean, 0 of a single value.
function standardError(values) {
  if (values.length < 2) return 0;
  const m = mean(values), squares = values.map(v => (v - m) ** 2);
  return Math.sqrt(mean(squares) / (values.length - 1));
}

function countText(n, what) { return `${n} ${what}${n === 1 ? "" : "s"}`; }

function readout({ lam, average, error, old, latest }, seeds) {
  const spread = seeds > 1 ? ` ± ${error.toFixed(3)}` : "";
  return `λ = ${lambdaText(lam)}: average accuracy ${average.toFixed(3)}${spread} ` +
    `(earlier tasks ${old.toFixed(3)}, last task ${latest.toFixed(3)})`;
}

// What a reader is told who has guessed that a λ is the best, given the stored landscape.
function verdict(guess, { lambdas, average, error }) {
  const best = average.indexOf(Math.max(...average));
  const near = nearest(lambdas, guess);
  const top = `Of the stored networks those with λ = ${lambdaText(lambdas[best])} are best ` +
    `(average accuracy ${average[best].toFixed(3)})`;
  if (near === best) return `${top}: exactly your guess.`;
  let distance = "0 and a positive λ are no factor apart";
  if (guess > 0 && lambdas[best] > 0) {
    const factor = Math.max(guess, lambdas[best]) / Math.min(guess, lambdas[best]);
    distance = `${lambdaText(factor)} times too ${guess < lambdas[best] ? "small" : "large"}`;
  }
  const cost = (100 * (average[best] - average[near])).toFixed(1);
  const close = average[near] >= average[best] - error[best] ? ", within one standard error" : "";
  return `${top}. Your guess ${lambdaText(guess)}: ${distance}, ${cost} points below${close}.`;
}
