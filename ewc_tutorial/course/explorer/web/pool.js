// The workers that train, one per core; networks are divided among them.
"use strict";

class Pool {
  constructor(scripts, images) {
    const address = URL.createObjectURL(new Blob(scripts, { type: "text/javascript" }));
    const cores = Math.max(1, Math.min(4, navigator.hardwareConcurrency || 2));
    this.job = 0;
    this.cancel = this.fail = () => {};
    this.workers = [];
    this.broken = null;
    try {
      while (this.workers.length < cores) this.workers.push(new Worker(address));
    } catch (error) {
      this.broken = error;
    }
    for (const worker of this.workers) {
      // One that cannot be loaded says so once, without a message, before anything is trained.
      worker.onerror = ({ message }) => {
        const error = new Error(message || "this page may not start a worker.");
        if (!message) this.broken = error;
        this.fail(error);
      };
      worker.postMessage({ images });
    }
  }

  stop() {
    this.cancel();
    this.job += 1;
    for (const worker of this.workers) worker.postMessage({ job: this.job });
  }

  // Train a network for each start; onProgress hears how all of them get on. Returns a promise of
  // the finished members, or of null if it was stopped, or something else is trained instead.
  train(settings, starts, lam, onProgress = () => {}) {
    this.stop();
    if (this.broken) return Promise.reject(this.broken);
    const { job, workers } = this, members = [];
    let waiting = Math.min(workers.length, starts.length);
    return new Promise((resolve, reject) => {
      this.cancel = () => resolve(null);
      this.fail = reject;
      workers.slice(0, waiting).forEach((worker, w) => {
        worker.onmessage = ({ data }) => {
          if (data.job !== job) return;
          data.members.forEach((m, i) => (members[w + i * workers.length] = m));
          if (members.filter(Boolean).length === starts.length) onProgress(members);
          if (data.over && --waiting === 0) resolve(members);
        };
        // A seed always goes to the same worker, which has its network after task A already.
        const mine = starts.filter((_, i) => i % workers.length === w);
        worker.postMessage({ job, settings, starts: mine, lam });
      });
    });
  }
}
