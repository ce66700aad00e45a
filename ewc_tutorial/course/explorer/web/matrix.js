// Products of small matrices: Float32Arrays, row by row. Nearly all time of a training goes here.
"use strict";

// C = A Bᵀ for A (n × k), B (m × k).
//
// Both factors are read along their rows, in blocks of 2 × 4 results, whose sums stay in registers:
// three times as fast as one by one. Sums are in double precision, as JavaScript's numbers are.
function timesTransposed(A, B, n, m, k, C = new Float32Array(n * m)) {
  let i = 0;
  for (; i + 1 < n; i += 2) {
    const a = i * k, aa = a + k;
    let j = 0;
    for (; j + 3 < m; j += 4) {
      const b = j * k, bb = b + k, bbb = bb + k, bbbb = bbb + k;
      let s = 0, t = 0, u = 0, v = 0, ss = 0, tt = 0, uu = 0, vv = 0;
      for (let l = 0; l < k; l++) {
        const x = A[a + l], xx = A[aa + l];
        const p = B[b + l], q = B[bb + l], r = B[bbb + l], z = B[bbbb + l];
        s += x * p; t += x * q; u += x * r; v += x * z;
        ss += xx * p; tt += xx * q; uu += xx * r; vv += xx * z;
      }
      const c = i * m + j, cc = c + m;
      C[c] = s; C[c + 1] = t; C[c + 2] = u; C[c + 3] = v;
      C[cc] = ss; C[cc + 1] = tt; C[cc + 2] = uu; C[cc + 3] = vv;
    }
    for (; j < m; j++) {
      const b = j * k;
      let s = 0, ss = 0;
      for (let l = 0; l < k; l++) {
        s += A[a + l] * B[b + l];
        ss += A[aa + l] * B[b + l];
      }
      C[i * m + j] = s;
      C[(i + 1) * m + j] = ss;
    }
  }
  for (; i < n; i++)
    for (let j = 0; j < m; j++) {
      let s = 0;
      for (let l = 0; l < k; l++) s += A[i * k + l] * B[j * k + l];
      C[i * m + j] = s;
    }
  return C;
}

// Aᵀ for A (n × m). Products of other forms are written with it; it costs little beside them.
function transposed(A, n, m) {
  const T = new A.constructor(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) T[j * n + i] = A[i * m + j];
  return T;
}

// Sums over the rows of A (n × m).
function columnSums(A, n, m) {
  const sums = new Float64Array(m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) sums[j] += A[i * m + j];
  return Float32Array.from(sums);
}

// Eigenvalues and eigenvectors (the columns of U) of a symmetric matrix, by Jacobi's rotations:
// slow for large matrices, but short, and the most accurate for those that are nearly singular.
// An eigenvalue that is zero but for rounding is zero: what rounding leaves of a direction that no
// image takes is not to become stiff at a large λ.
function eigenvectors(matrix, n) {
  const A = Float64Array.from(matrix), U = new Float64Array(n * n);
  for (let i = 0; i < n; i++) U[i * n + i] = 1;
  let size = 0;
  for (const a of A) size += a * a;
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) off += A[p * n + q] ** 2;
    if (off <= 1e-22 * size) break;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        if (A[p * n + q] ** 2 <= 1e-30 * size) continue;
        const theta = (A[q * n + q] - A[p * n + p]) / (2 * A[p * n + q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1), s = t * c;
        for (let i = 0; i < n; i++) rotate(A, i * n + p, i * n + q, c, s);
        for (let i = 0; i < n; i++) rotate(A, p * n + i, q * n + i, c, s);
        for (let i = 0; i < n; i++) rotate(U, i * n + p, i * n + q, c, s);
      }
  }
  const values = Float32Array.from({ length: n }, (_, i) => A[i * n + i]);
  const least = 2 ** -23 * Math.max(0, ...values); // the precision of the factors
  return { values: values.map(value => (value > least ? value : 0)), U };
}

function rotate(A, i, j, c, s) {
  const x = A[i], y = A[j];
  A[i] = c * x - s * y;
  A[j] = s * x + c * y;
}
