// Random numbers as PyTorch draws them on a CPU, so that seed s here is seed s in the notebooks.
"use strict";

// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), the generator of PyTorch's CPU.
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.next = 624;
  }

  copy() {
    const twin = new Twister(0);
    twin.state.set(this.state);
    twin.next = this.next;
    return twin;
  }

  // A whole number below 2³².
  whole() {
    if (this.next === 624) this.#refill();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #refill() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  // Tensor.uniform_(-bound, bound), in its single precision: 24 random bits.
  uniform(size, bound) {
    const low = Math.fround(-bound), width = Math.fround(Math.fround(bound) - low);
    return Float32Array.from({ length: size }, () =>
      (this.whole() & 0xffffff) / 0x1000000 * width + low);
  }

  // torch.randperm(n).
  permutation(n) {
    const rows = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = 0; i < n - 1; i++) {
      const j = i + this.whole() % (n - i);
      [rows[i], rows[j]] = [rows[j], rows[i]];
    }
    return rows;
  }
}
