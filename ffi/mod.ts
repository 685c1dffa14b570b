/**
 * The native library from TypeScript: contexts, arenas, tensors and checked kernels.
 *
 * @module
 */

export type { Dropout } from "./_arguments.ts";
export { Arena, type ArenaOptions, type Mark } from "./arena.ts";
export {
  ATTENTION_FORMS,
  attentionBackward,
  type AttentionForm,
  attentionForward,
  type AttentionGradients,
  type AttentionInputs,
  type AttentionOutputs,
  type AttentionSizes,
  attentionSizes,
} from "./attention.ts";
export { Context, type ContextOptions, type DeviceInfo, Event, Graph } from "./context.ts";
export { type DType, ELEMENT_BYTES, type HostArray, unitRoundoff } from "./dtype.ts";
export { LibraryError, NativeError, OutOfMemoryError } from "./errors.ts";
export { gemm, type GemmParameters } from "./gemm.ts";
export * from "./kernels.ts";
export { chooseDevice, type Device, deviceCount, libraryUrl } from "./library.ts";
export { Tensor } from "./tensor.ts";
