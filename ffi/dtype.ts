/**
 * Element types, and conversion between float and the 16-bit formats on the host.
 *
 * @module
 */

/** Element type of a tensor. */
export type DType = "f32" | "bf16" | "f16" | "i32" | "u64";

/** Host arrays that hold a tensor's elements: 16-bit floats travel as `Float32Array`. */
export type HostArray = Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | BigUint64Array<ArrayBuffer>;

/** Bytes of one element. */
export const ELEMENT_BYTES: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2, i32: 4, u64: 8 };

/** The C enumeration of floating-point types; integers have no number there. */
export const DTYPE_CODES: Readonly<Partial<Record<DType, number>>> = { f32: 0, bf16: 1, f16: 2 };

/** The unit roundoff of a floating-point type: 2^-24, 2^-9 or 2^-12. */
export function unitRoundoff(dtype: DType): number {
  return { f32: 2 ** -24, bf16: 2 ** -9, f16: 2 ** -12, i32: 0, u64: 0 }[dtype];
}

/** Rounds floats to bfloat16, to nearest even; NaN stays NaN. */
export function toBfloat16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const u = bits[i] ?? 0;
    const isNaN = (u & 0x7fffffff) > 0x7f800000;
    out[i] = isNaN ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** Widens bfloat16 bits to floats, exactly. */
export function fromBfloat16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < out.length; i++) out[i] = (bits[i] ?? 0) << 16;
  return new Float32Array(out.buffer);
}

/** The bytes of `values` in the format of `dtype`. */
export function encode(values: HostArray, dtype: DType): Uint8Array<ArrayBuffer> {
  const expected = dtype === "i32" ? Int32Array : dtype === "u64" ? BigUint64Array : Float32Array;
  if (!(values instanceof expected)) {
    throw new TypeError(
      `Cannot write a ${values.constructor.name} to a tensor of ${dtype}: it takes a ${expected.name}`,
    );
  }
  let data: HostArray | Uint16Array<ArrayBuffer> | Float16Array<ArrayBuffer> = values;
  if (dtype === "bf16") data = toBfloat16(values as Float32Array);
  if (dtype === "f16") data = Float16Array.from(values as Float32Array);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** The elements that `bytes` hold in the format of `dtype`. */
export function decode(bytes: Uint8Array<ArrayBuffer>, dtype: DType): HostArray {
  const { buffer } = bytes;
  switch (dtype) {
    case "f32":
      return new Float32Array(buffer);
    case "bf16":
      return fromBfloat16(new Uint16Array(buffer));
    case "f16":
      return Float32Array.from(new Float16Array(buffer));
    case "i32":
      return new Int32Array(buffer);
    case "u64":
      return new BigUint64Array(buffer);
  }
}
