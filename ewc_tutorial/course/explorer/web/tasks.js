// Permuted digits: the tasks of ewc_tutorial.course.tasks.permuted_tasks(n).
"use strict";

const PIXELS = 64;

function fromBase64(text) { return Uint8Array.from(atob(text), letter => letter.charCodeAt(0)); }

// images: {pixels, labels} as bytes, those for training first, and their number `train`.
function permutedTasks({ pixels, labels, train }, n) {
  const random = new Twister(0); // the permutations of seed 0, as everywhere in the course
  return Array.from({ length: n }, (_, t) => {
    const order = t ? random.permutation(PIXELS) : Int32Array.from({ length: PIXELS }, (_, i) => i);
    const part = (from, to) => {
      const x = new Float32Array((to - from) * PIXELS);
      for (let i = from, k = 0; i < to; i++)
        for (let j = 0; j < PIXELS; j++, k++) x[k] = pixels[i * PIXELS + order[j]] / 16;
      return { x, y: labels.subarray(from, to) };
    };
    return { name: "ABCDE"[t], train: part(0, train), test: part(train, labels.length) };
  });
}
