/**
 * The device that the tests run on: `deno test --allow-ffi -- --device cuda`; auto without it.
 *
 * Importing this module opens the library: the resource sanitizer would count a library opened within a test as its leak.
 *
 * @module
 */

import { chooseDevice, Context, type Device, deviceCount } from "../ffi/mod.ts";

function deviceFromArguments(): Device {
  const at = Deno.args.indexOf("--device");
  const name = at < 0 ? "auto" : Deno.args[at + 1];
  if (name === "cpu" || name === "cuda") return name;
  if (name === "auto") return chooseDevice();
  throw new RangeError(`Cannot test on device "${name}": it must be auto, cpu or cuda`);
}

const DEVICE = deviceFromArguments();
deviceCount(DEVICE);

/** The device that the command line names, or the one that `auto` stands for. */
export function testDevice(): Device {
  return DEVICE;
}

/** A context on the device under test. */
export function openTestContext(): Context {
  return new Context({ device: DEVICE });
}
