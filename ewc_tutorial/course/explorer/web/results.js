// From what the reader has chosen to settings, and from trained networks to numbers.
"use strict";

// What a Learner needs of what the reader has chosen.
function settingsOf({ tasks, width, lr, epochs, curvature }, images) {
  return {
    tasks, lr, curvature, batch: 32, evaluations: 10,
    sizes: [PIXELS, width, width, 10], steps: epochs * Math.floor(images.train / 32),
  };
}

// Steps that every member has reached, with the accuracies of all of them.
function shownPoints(of) {
  const shortest = Math.min(...of.map(({ points }) => points.length));
  return Array.from({ length: shortest }, (_, e) => ({
    step: of[0].points[e].step, accuracies: of.map(({ points }) => points[e].accuracy),
  }));
}

// What is shown of the finished networks of one λ.
function summary(lam, found) {
  const last = found.map(({ points }) => points.at(-1).accuracy);
  const averages = last.map(mean);
  return {
    lam, curves: { lam, points: shownPoints(found) },
    average: mean(averages), error: standardError(averages),
    old: mean(last.map(values => mean(values.slice(0, -1)))),
    latest: mean(last.map(values => values.at(-1))),
    important: mean(found.map(m => m.moved[0])), other: mean(found.map(m => m.moved[1])),
  };
}
