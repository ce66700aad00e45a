// One network that learns the tasks one after the other.
"use strict";

const IMPORTANT = 0.1; // the share of the weights, those with the largest F of task A

class Learner {
  // settings: what all runs share, {sizes, lr, steps, batch, evaluations, curvature}. A run starts
  // from a seed, as in the course's sweep, or from given parameters and order of batches.
  constructor(tasks, settings, { seed = 0, parameters, orders }) {
    this.tasks = tasks;
    this.settings = settings;
    this.seed = seed;
    this.parameters = parameters ?? initialParameters(settings.sizes, seed);
    this.random = new Twister(seed);
    this.orders = orders;
    this.curvature = new CURVATURES[settings.curvature](settings.sizes);
    this.learned = 0; // number of tasks
    this.points = [this.measure(0)];
  }

  copy() {
    const twin = Object.assign(Object.create(Learner.prototype), this);
    twin.parameters = this.parameters.map(p => p.slice());
    twin.random = this.random.copy();
    twin.curvature = this.curvature.copy();
    twin.points = [...this.points];
    return twin;
  }

  // Train on the next task and consolidate; yields at each evaluation, when the curves have grown.
  *learn(lam) {
    const { sizes, lr, steps, evaluations, batch } = this.settings, index = this.learned;
    const { x, y } = this.tasks[index].train, D = sizes[0];
    const rows = this.batches(index, y.length, Math.min(batch, y.length));
    const every = Math.max(1, Math.round(steps / evaluations));
    const ewc = index > 0 && lam > 0 && new Attachment(this.curvature, this.parameters, lr, lam);
    for (let step = 1; step <= steps; step++) {
      const chosen = rows.next().value, n = chosen.length;
      const images = new Float32Array(n * D), labels = new Uint8Array(n);
      for (let i = 0; i < n; i++) {
        images.set(x.subarray(chosen[i] * D, (chosen[i] + 1) * D), i * D);
        labels[i] = y[chosen[i]];
      }
      const g = gradient(this.parameters, sizes, images, labels, n);
      this.parameters.forEach((p, k) => {
        for (let i = 0; i < p.length; i++) p[i] -= lr * g[k][i];
      });
      if (ewc) ewc.afterStep();
      if (ewc && step === steps) ewc.complete();
      if (step % every === 0 || step === steps) {
        this.points.push(this.measure(index * steps + step));
        yield;
      }
    }
    this.learned += 1;
    // The last task's curvature holds nothing any more.
    if (this.learned < this.tasks.length) this.curvature.consolidate(this.parameters, x, y.length);
    if (index === 0) this.remember(x, y.length);
  }

  // Root mean square of how far weights have moved since task A: the important ones, the others.
  moved() {
    const sums = [0, 0], counts = [0, 0];
    this.first.forEach(({ anchor, important }, l) => anchor.forEach((a, i) => {
      const group = important[i] ? 0 : 1;
      sums[group] += (this.parameters[2 * l][i] - a) ** 2;
      counts[group] += 1;
    }));
    return sums.map((sum, group) => Math.sqrt(sum / Math.max(1, counts[group])));
  }

  remember(x, n) {
    const F = this.curvature.S ?? fisherDiagonal(this.parameters, this.settings.sizes, x, n);
    const weights = (_, k) => k % 2 === 0;
    const sorted = Float32Array.from(F.filter(weights).flatMap(f => [...f])).sort();
    const least = sorted[Math.round((1 - IMPORTANT) * sorted.length) - 1];
    this.first = this.parameters.filter(weights).map((p, l) => ({
      anchor: p.slice(), important: Uint8Array.from(F[2 * l], f => f > least),
    }));
  }

  // Each epoch a new permutation, cut into full batches.
  *batches(index, total, size) {
    if (this.orders) return yield* this.orders[index];
    while (true) {
      const rows = this.random.permutation(total);
      for (let i = 0; i + size <= total; i += size) yield rows.subarray(i, i + size);
    }
  }

  measure(step) {
    const { sizes } = this.settings;
    const seen = this.tasks.map(({ test }) => accuracy(this.parameters, sizes, test.x, test.y));
    return { step, accuracy: seen };
  }
}
