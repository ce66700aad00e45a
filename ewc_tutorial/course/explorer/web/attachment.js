// Proximal steps after the steps of gradient descent, as ewc_tutorial/attachment.py makes them.
"use strict";

// Where a proximal step is costly it follows several training steps, with the sum of their η. In
// between the penalty is a constant force, without which training would end elsewhere (Mishchenko,
// Malinovsky, Stich and Richtárik 2022).
class Attachment {
  constructor(curvature, parameters, lr, lam) {
    Object.assign(this, { curvature, parameters, lr, lam, waited: 0, force: null });
    this.every = curvature.constructor.every;
  }

  afterStep() {
    this.waited += 1;
    if (this.force) this.#push(-this.lr);
    if (this.waited === this.every) this.complete();
  }

  complete() {
    if (!this.waited) return;
    const eta = this.waited * this.lr;
    if (this.force) this.#push(eta);
    const before = this.every > 1 && this.parameters.map(p => p.slice());
    this.curvature.step(this.parameters, eta, this.lam);
    if (before)
      this.force = before.map((b, k) => b.map((value, i) => (value - this.parameters[k][i]) / eta));
    this.waited = 0;
  }

  #push(times) {
    this.parameters.forEach((p, k) => {
      for (let i = 0; i < p.length; i++) p[i] += times * this.force[k][i];
    });
  }
}
