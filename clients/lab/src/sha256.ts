/**
 * SHA-256 of text. `crypto.subtle` is missing in pages that are served without TLS, as many notebook servers are.
 */

/** The fractional parts of a root of the first primes, as 32-bit words. */
function fractions(count: number, root: (prime: number) => number): number[] {
  const words: number[] = [];
  for (let candidate = 2; words.length < count; candidate++) {
    let prime = true;
    for (let divisor = 2; divisor * divisor <= candidate; divisor++) {
      prime &&= candidate % divisor !== 0;
    }
    if (prime) {
      words.push(((root(candidate) % 1) * 2 ** 32) | 0);
    }
  }
  return words;
}

const ROUNDS = fractions(64, Math.cbrt);
const START = fractions(8, Math.sqrt);

const rotate = (word: number, bits: number): number => (word >>> bits) | (word << (32 - bits));

function padded(text: string): DataView {
  const bytes = new TextEncoder().encode(text);
  const length = (((bytes.length + 8) >> 6) + 1) << 6;
  const view = new DataView(new ArrayBuffer(length));
  new Uint8Array(view.buffer).set(bytes);
  view.setUint8(bytes.length, 0x80);
  view.setUint32(length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(length - 4, bytes.length << 3);
  return view;
}

function compress(state: number[], view: DataView, offset: number): void {
  const words = new Int32Array(64);
  for (let i = 0; i < 16; i++) {
    words[i] = view.getInt32(offset + 4 * i);
  }
  for (let i = 16; i < 64; i++) {
    const [early, late] = [words[i - 15], words[i - 2]];
    const s0 = rotate(early, 7) ^ rotate(early, 18) ^ (early >>> 3);
    const s1 = rotate(late, 17) ^ rotate(late, 19) ^ (late >>> 10);
    words[i] = words[i - 16] + s0 + words[i - 7] + s1;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUNDS[i] + words[i]) | 0;
    const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [a, b, c, d, e, f, g, h] = [(t1 + t2) | 0, a, b, c, (d + t1) | 0, e, f, g];
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => {
    state[i] = (state[i] + word) | 0;
  });
}

/** The SHA-256 of the text's UTF-8, in hexadecimal. */
export function sha256(text: string): string {
  const view = padded(text);
  const state = [...START];
  for (let offset = 0; offset < view.byteLength; offset += 64) {
    compress(state, view, offset);
  }
  return state.map(word => (word >>> 0).toString(16).padStart(8, '0')).join('');
}
