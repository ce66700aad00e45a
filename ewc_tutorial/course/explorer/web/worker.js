// What runs beside the page: trains the networks that it is asked for and tells how they get on.
"use strict";

let images, tasks, job;
let shared = ""; // the settings that `afterFirst` holds for
const afterFirst = new Map(); // networks after task A, by seed: up to there λ changes nothing

const pause = new MessageChannel();
pause.port1.start();

// Let messages in: another job may have come, or a stop.
function turn() {
  return new Promise(resolve => {
    pause.port1.addEventListener("message", resolve, { once: true });
    pause.port2.postMessage(null);
  });
}

onmessage = ({ data }) => {
  if (data.images) images = data.images;
  else job = data.job;
  // Thrown out of the promise, so that the page hears of it.
  if (data.starts) train(data).catch(error => setTimeout(() => { throw error; }));
};

async function train({ job: mine, settings, starts, lam }) {
  if (shared !== JSON.stringify(settings)) {
    shared = JSON.stringify(settings);
    afterFirst.clear();
    tasks = permutedTasks(images, settings.tasks);
  }
  const learners = starts.map(start => (start.parameters ? undefined : afterFirst.get(start.seed))
    ?.copy() ?? new Learner(tasks, settings, start));
  const tell = over => postMessage({
    job: mine, over, members: learners.map(learner => ({
      seed: learner.seed, points: learner.points,
      ...(over && { parameters: learner.parameters, moved: learner.moved() }),
    })),
  });
  for (let t = 0; t < tasks.length; t++) {
    // All in step, so that the mean of their curves grows from left to right.
    let running = learners.filter(learner => learner.learned === t).map(l => l.learn(lam));
    while (running.length) {
      running = running.filter(training => !training.next().done);
      tell(false);
      await turn();
      if (job !== mine) return;
    }
    if (t === 0)
      starts.forEach((start, i) => {
        if (!start.parameters) afterFirst.set(start.seed, learners[i].copy());
      });
  }
  tell(true);
}
