// The exact Fisher information, and the two forms of the penalty that is made of it.
//
// Exact: the expectation over the labels that the model itself gives, in closed form,
// F = mean over images of Σ_c p_c g_c g_cᵀ with g_c the gradient of log p_c. In a layer, g_c is the
// outer product of the gradient by its outputs and its inputs.
"use strict";

const IMAGES_AT_ONCE = 128; // what stays in a cache

// Yield for each batch their number n, the inputs of layer l in layers[l - 1], and ofClass, which
// returns for a class c its probabilities p and, per layer, the gradient of log p_c by the layer's
// outputs.
function* batchesOfGradients(parameters, sizes, x, total) {
  const L = sizes.length - 1, classes = sizes[L];
  for (let start = 0; start < total; start += IMAGES_AT_ONCE) {
    const n = Math.min(IMAGES_AT_ONCE, total - start);
    const images = x.subarray(start * sizes[0], (start + n) * sizes[0]);
    const layers = forward(parameters, sizes, images, n), all = softmax(layers[L], n, classes);
    const ofClass = c => {
      const p = new Float32Array(n), gradients = [];
      gradients[L] = all.map(value => -value);
      for (let i = 0; i < n; i++) {
        p[i] = all[i * classes + c];
        gradients[L][i * classes + c] += 1;
      }
      for (let l = L; l > 1; l--)
        gradients[l - 1] = backward(parameters, sizes, l, layers[l - 1], gradients[l], n);
      return { p, gradients };
    };
    yield { n, layers, ofClass };
  }
}

// The diagonal of F, in the order and shapes of the parameters.
function fisherDiagonal(parameters, sizes, x, total) {
  const F = parameters.map(p => new Float64Array(p.length)), L = sizes.length - 1;
  for (const { n, layers, ofClass } of batchesOfGradients(parameters, sizes, x, total)) {
    // Σ_c p_c g_c² first: then one product with the squared inputs serves all classes.
    const squares = sizes.map(size => new Float32Array(n * size));
    for (let c = 0; c < sizes[L]; c++) {
      const { p, gradients } = ofClass(c);
      for (let l = 1; l <= L; l++)
        for (let i = 0, k = 0; i < n; i++)
          for (let j = 0; j < sizes[l]; j++, k++) squares[l][k] += p[i] * gradients[l][k] ** 2;
    }
    for (let l = 1; l <= L; l++) {
      const inputs = sizes[l - 1], outputs = sizes[l];
      const hh = transposed(layers[l - 1].map(value => value * value), n, inputs);
      const sums = timesTransposed(transposed(squares[l], n, outputs), hh, outputs, inputs, n);
      sums.forEach((s, i) => (F[2 * l - 2][i] += s / total));
      columnSums(squares[l], n, outputs).forEach((s, j) => (F[2 * l - 1][j] += s / total));
    }
  }
  return F.map(f => Float32Array.from(f));
}

// Kronecker factors of each layer (Martens and Grosse 2015): A, the second moment of its inputs and
// of the 1 that the bias multiplies, and G, that of the gradients by its outputs.
function fisherFactors(parameters, sizes, x, total) {
  const factors = sizes.slice(1).map((outputs, i) => ({
    A: new Float64Array((sizes[i] + 1) ** 2), G: new Float64Array(outputs ** 2),
  }));
  const add = (sum, rows, n, size) => {
    const T = transposed(rows, n, size);
    timesTransposed(T, T, size, size, n).forEach((s, i) => (sum[i] += s / total));
  };
  for (const { n, layers, ofClass } of batchesOfGradients(parameters, sizes, x, total)) {
    factors.forEach(({ A }, l) => {
      const inputs = sizes[l], rows = new Float32Array(n * (inputs + 1)).fill(1);
      for (let i = 0; i < n; i++)
        rows.set(layers[l].subarray(i * inputs, (i + 1) * inputs), i * (inputs + 1));
      add(A, rows, n, inputs + 1);
    });
    for (let c = 0; c < sizes[sizes.length - 1]; c++) {
      const { p, gradients } = ofClass(c);
      factors.forEach(({ G }, l) => {
        const outputs = sizes[l + 1];
        const weighted = (value, i) => value * Math.sqrt(p[Math.floor(i / outputs)]);
        add(G, gradients[l + 1].map(weighted), n, outputs);
      });
    }
  }
  return factors.map(({ A, G }) => ({ A: Float32Array.from(A), G: Float32Array.from(G) }));
}

// A number per weight. Of several tasks it is the sum of their quadratics (rule "separate"), which
// is one quadratic again: S = Σ F, μ = Σ Fθ* / S.
class Diagonal {
  static every = 1; // training steps for each proximal step

  constructor(sizes) { this.sizes = sizes; }

  copy() { return Object.assign(new Diagonal(this.sizes), this); }

  consolidate(parameters, x, n) {
    const F = fisherDiagonal(parameters, this.sizes, x, n);
    if (this.S === undefined) {
      this.S = F;
      this.anchor = parameters.map(p => p.slice());
      return;
    }
    const S = this.S.map((s, k) => s.map((value, i) => value + F[k][i]));
    this.anchor = this.anchor.map((mu, k) => mu.map((value, i) =>
      value + (S[k][i] > 0 ? F[k][i] / S[k][i] : 1) * (parameters[k][i] - value)));
    this.S = S;
  }

  // The proximal step, in place: θ ← (θ + ηλSμ) / (1 + ηλS). It is stable at every λ.
  step(parameters, lr, lam) {
    parameters.forEach((theta, k) => {
      const S = this.S[k], mu = this.anchor[k];
      for (let i = 0; i < theta.length; i++) {
        const stiffness = lr * lam * S[i];
        theta[i] += stiffness / (1 + stiffness) * (mu[i] - theta[i]);
      }
    });
  }
}

// Two matrices per layer, whose Kronecker product is its block of F. Of several tasks the means of
// both, times the number of tasks, around the last optimum (Ritter, Botev and Barber 2018).
class Kronecker {
  static every = 20;

  constructor(sizes) {
    this.sizes = sizes;
    this.tasks = 0;
  }

  copy() { return Object.assign(new Kronecker(this.sizes), this); }

  consolidate(parameters, x, n) {
    this.tasks += 1;
    const here = fisherFactors(parameters, this.sizes, x, n);
    const mean = (old, now) => old.map((value, i) => value + (now[i] - value) / this.tasks);
    this.factors = this.factors === undefined ? here : here.map(({ A, G }, l) => ({
      A: mean(this.factors[l].A, A), G: mean(this.factors[l].G, G),
    }));
    this.anchor = parameters.map(p => p.slice());
    this.bases = this.factors.map(({ A, G }, l) => {
      const inputs = this.sizes[l] + 1, outputs = this.sizes[l + 1];
      const ofA = eigenvectors(A, inputs), ofG = eigenvectors(G, outputs);
      const U = Float32Array.from(ofA.U), V = Float32Array.from(ofG.U);
      return {
        a: ofA.values, g: ofG.values, U, V,
        UT: transposed(U, inputs, inputs), VT: transposed(V, outputs, outputs),
      };
    });
  }

  // The proximal step, in place: in the eigenvectors of G and A the move is a division.
  step(parameters, lr, lam) {
    this.bases.forEach(({ a, g, U, UT, V, VT }, l) => {
      const inputs = this.sizes[l], side = inputs + 1, outputs = this.sizes[l + 1];
      const W = parameters[2 * l], b = parameters[2 * l + 1];
      const offset = new Float32Array(side * outputs); // (W − W*)ᵀ with the bias as last row
      for (let o = 0; o < outputs; o++) {
        for (let i = 0; i < inputs; i++)
          offset[i * outputs + o] = W[o * inputs + i] - this.anchor[2 * l][o * inputs + i];
        offset[inputs * outputs + o] = b[o] - this.anchor[2 * l + 1][o];
      }
      // Uᵀ (offset V), then back.
      let M = timesTransposed(offset, VT, side, outputs, outputs);
      M = timesTransposed(UT, transposed(M, side, outputs), side, outputs, side);
      for (let i = 0; i < side; i++)
        for (let o = 0; o < outputs; o++) {
          const c = lr * lam * this.tasks * a[i] * g[o];
          M[i * outputs + o] *= c / (1 + c);
        }
      M = timesTransposed(M, V, side, outputs, outputs);
      M = timesTransposed(U, transposed(M, side, outputs), side, outputs, side);
      for (let o = 0; o < outputs; o++) {
        for (let i = 0; i < inputs; i++) W[o * inputs + i] -= M[i * outputs + o];
        b[o] -= M[inputs * outputs + o];
      }
    });
  }
}

const CURVATURES = { diagonal: Diagonal, kronecker: Kronecker };
