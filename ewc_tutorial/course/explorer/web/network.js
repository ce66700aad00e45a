// The course's fully connected network: ReLU layers, softmax, cross-entropy, gradient descent.
//
// Parameters are those of PyTorch in its order, [W₁, b₁, W₂, b₂, …], W (outputs × inputs).
"use strict";

// The initial weights of ewc_tutorial.course.models.mlp(…, seed=seed).
function initialParameters(sizes, seed) {
  const random = new Twister(seed), parameters = [];
  for (let l = 1; l < sizes.length; l++) {
    // nn.Linear draws weights and biases alike from ±1/√inputs; the weights by a longer formula,
    // which is what decides their last bit.
    const inputs = sizes[l - 1], bound = 1 / Math.sqrt(inputs);
    const weightBound = Math.sqrt(3) * (Math.sqrt(2 / 6) / Math.sqrt(inputs));
    parameters.push(random.uniform(inputs * sizes[l], weightBound));
    parameters.push(random.uniform(sizes[l], bound));
  }
  return parameters;
}

// Return the inputs of every layer, and the logits last. x is (n × sizes[0]).
function forward(parameters, sizes, x, n) {
  const layers = [x];
  for (let l = 1; l < sizes.length; l++) {
    const outputs = sizes[l], last = l === sizes.length - 1, bias = parameters[2 * l - 1];
    const h = timesTransposed(layers[l - 1], parameters[2 * l - 2], n, outputs, sizes[l - 1]);
    for (let i = 0, k = 0; i < n; i++)
      for (let j = 0; j < outputs; j++, k++) {
        const value = h[k] + bias[j];
        h[k] = last || value > 0 ? value : 0;
      }
    layers.push(h);
  }
  return layers;
}

// Softmax of logits (n × classes).
function softmax(logits, n, classes) {
  const p = new Float32Array(n * classes), row = new Float64Array(classes);
  for (let i = 0; i < n; i++) {
    let top = -Infinity, sum = 0;
    for (let j = 0; j < classes; j++) top = Math.max(top, logits[i * classes + j]);
    for (let j = 0; j < classes; j++) sum += row[j] = Math.exp(logits[i * classes + j] - top);
    for (let j = 0; j < classes; j++) p[i * classes + j] = row[j] / sum;
  }
  return p;
}

// Return the gradient by the inputs of layer l, given that by its outputs: through W, then ReLU.
function backward(parameters, sizes, l, h, g, n) {
  const inputs = sizes[l - 1], outputs = sizes[l];
  const W = transposed(parameters[2 * l - 2], outputs, inputs);
  const back = timesTransposed(g, W, n, inputs, outputs);
  for (let i = 0; i < back.length; i++) if (!(h[i] > 0)) back[i] = 0;
  return back;
}

// The gradient of the mean cross-entropy of a batch, in the order of the parameters.
function gradient(parameters, sizes, x, y, n) {
  const layers = forward(parameters, sizes, x, n), L = sizes.length - 1, classes = sizes[L];
  let g = softmax(layers[L], n, classes);
  for (let i = 0; i < n; i++) g[i * classes + y[i]] -= 1;
  for (let i = 0; i < g.length; i++) g[i] /= n;
  const found = [];
  for (let l = L; l > 0; l--) {
    const inputs = sizes[l - 1], outputs = sizes[l], h = layers[l - 1];
    found.unshift(
      timesTransposed(transposed(g, n, outputs), transposed(h, n, inputs), outputs, inputs, n),
      columnSums(g, n, outputs));
    if (l > 1) g = backward(parameters, sizes, l, h, g, n);
  }
  return found;
}

// The share of images whose largest logit is that of their label.
function accuracy(parameters, sizes, x, y) {
  const n = y.length, layers = forward(parameters, sizes, x, n);
  const classes = sizes[sizes.length - 1], logits = layers[layers.length - 1];
  let right = 0;
  for (let i = 0; i < n; i++) {
    let best = 0;
    for (let j = 1; j < classes; j++)
      if (logits[i * classes + j] > logits[i * classes + best]) best = j;
    right += best === y[i];
  }
  return right / n;
}
